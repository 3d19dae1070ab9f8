//! The one shape of every use of a key: plan, HSM, finish, record; alone or many in a batch.
//!
//! A batch gives all its items to one HSM worker, and has one record an item, one append, one result an item.

use std::sync::atomic::Ordering;

use kms_hsm::{CryptoOp, CryptoOutput, Finished};

use super::kms::Inner;
use super::trail::Trail;
use super::{BatchItems, BatchResults, MAX_BATCH_ITEMS, RequestContext, ServiceError};

/// What is to be done for one item: with the HSM, or nothing any more.
pub(super) enum Step<P> {
    /// The HSM does it, and the plan makes a result of what it gives.
    Hsm(P, CryptoOp),
    /// It is done without the HSM.
    Done(P),
}

/// One kind of use of a key.
pub(super) trait CryptoCase: Send + Sized + 'static {
    /// What is remembered while the HSM works.
    type Plan: Send;
    /// What the caller gets.
    type Output: Send;

    /// Starts the trail, at the key or the alias that the caller named.
    fn trail(&self) -> Trail;

    /// Decides and checks, in this order, and says what the HSM must do.
    fn plan(
        self,
        inner: &Inner,
        request: &RequestContext,
        trail: &mut Trail,
    ) -> impl Future<Output = Result<Step<Self::Plan>, ServiceError>> + Send;

    /// Makes the result of what the HSM gave; `None` when the plan needed no HSM.
    fn finish(plan: Self::Plan, output: Option<CryptoOutput>)
    -> Result<Self::Output, ServiceError>;
}

/// An item of a batch whose plan is made.
enum Planned<P> {
    /// Its answer is the next of the HSM's.
    AtHsm(P),
    Done(P),
}

impl Inner {
    /// Does one item, and records it.
    pub(super) async fn one<C: CryptoCase>(
        &self,
        request: &RequestContext,
        case: C,
    ) -> Result<C::Output, ServiceError> {
        self.traffic.fetch_add(1, Ordering::Relaxed);
        let mut trail = case.trail();
        let result = self.work(request, case, &mut trail).await;
        self.record(request, trail, result).await
    }

    async fn work<C: CryptoCase>(
        &self,
        request: &RequestContext,
        case: C,
        trail: &mut Trail,
    ) -> Result<C::Output, ServiceError> {
        match case.plan(self, request, trail).await? {
            Step::Done(plan) => C::finish(plan, None),
            Step::Hsm(plan, operation) => {
                let start = self.clock.monotonic();
                let finished = self.hsm.crypt(operation, request.deadline).await;
                let Finished { output, timing } = finished.map_err(|error| {
                    trail.timing = self.timing_since(start);
                    self.device(error)
                })?;
                trail.timing = timing;
                C::finish(plan, Some(output))
            }
        }
    }

    /// Does the items of a batch, and records each. One without items, or with too many, is refused as a whole.
    pub(super) async fn many<C: CryptoCase>(
        &self,
        request: &RequestContext,
        items: BatchItems<C>,
    ) -> Result<BatchResults<C::Output>, ServiceError> {
        if let Err(error) = check_length(items.len()) {
            return self.record(request, Trail::unknown(), Err(error)).await;
        }
        self.traffic.fetch_add(1, Ordering::Relaxed);
        let mut operations = Vec::with_capacity(items.len());
        let mut planned = Vec::with_capacity(items.len());
        for item in items {
            let mut trail = item.as_ref().map_or_else(|_| Trail::unknown(), CryptoCase::trail);
            let step = match item {
                Ok(case) => case.plan(self, request, &mut trail).await,
                Err(error) => Err(error),
            };
            let step = step.map(|step| match step {
                Step::Done(plan) => Planned::Done(plan),
                Step::Hsm(plan, operation) => {
                    operations.push(operation);
                    Planned::AtHsm(plan)
                }
            });
            planned.push((trail, step));
        }
        let start = self.clock.monotonic();
        let mut answers = self.crypt_all(request, operations).await.into_iter();
        let whole = self.timing_since(start);
        let results = planned.into_iter().map(|(mut trail, step)| {
            let result = step.and_then(|step| match step {
                Planned::Done(plan) => C::finish(plan, None),
                Planned::AtHsm(plan) => {
                    let too_few = Err(ServiceError::Bug { reason: "the hsm gave too few answers" });
                    // Of one that failed nothing else is known.
                    trail.timing = whole;
                    let Finished { output, timing } = answers.next().unwrap_or(too_few)?;
                    trail.timing = timing;
                    C::finish(plan, Some(output))
                }
            });
            (trail, result)
        });
        self.record_batch(request, results.collect()).await
    }

    /// Runs operations on one worker; when all of them fail together, each gets that error.
    async fn crypt_all(
        &self,
        request: &RequestContext,
        operations: Vec<CryptoOp>,
    ) -> Vec<Result<Finished, ServiceError>> {
        let count = operations.len();
        if count == 0 {
            return Vec::new();
        }
        match self.hsm.crypt_batch(operations, request.deadline).await {
            Ok(answers) => answers
                .into_iter()
                .map(|answer| answer.map_err(|error| self.device(error)))
                .collect(),
            Err(error) => {
                let error = self.device(error);
                std::iter::repeat_with(|| Err(error.clone())).take(count).collect()
            }
        }
    }
}

/// The error of an HSM that answered something that was not asked.
pub(super) const fn other_answer() -> ServiceError {
    ServiceError::Bug { reason: "the hsm answered something that was not asked" }
}

fn check_length(length: usize) -> Result<(), ServiceError> {
    if (1..=MAX_BATCH_ITEMS).contains(&length) {
        return Ok(());
    }
    Err(ServiceError::field("items", format!("must be 1 to {MAX_BATCH_ITEMS} items")))
}
