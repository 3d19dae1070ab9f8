//! Batches: many items on one HSM worker, one record an item, one append, one result an item.

use kms_hsm::{CryptoOp, Finished};

use super::kms::{Inner, check_batch};
use super::trail::Trail;
use super::{BatchItems, BatchResults, RequestContext, ServiceError};

/// What is to be done for one item: with the HSM, or nothing any more.
pub(super) enum Step<P> {
    /// The HSM does it, and the plan makes a result of what it gives.
    Hsm(P, CryptoOp),
    /// It is done without the HSM.
    Done(P),
}

impl<P> From<(P, CryptoOp)> for Step<P> {
    fn from((plan, operation): (P, CryptoOp)) -> Self {
        Self::Hsm(plan, operation)
    }
}

impl Inner {
    /// Plans each item, gives all of them to one worker, finishes and records each.
    pub(super) async fn batch<I, P, T, F>(
        &self,
        request: &RequestContext,
        items: BatchItems<I>,
        name: impl Fn(&I) -> Trail,
        plan: impl Fn(I, Trail) -> F,
        finish: impl Fn(P, Finished) -> Result<T, ServiceError>,
    ) -> Result<BatchResults<T>, ServiceError>
    where
        F: Future<Output = (Trail, Result<(P, CryptoOp), ServiceError>)>,
    {
        let unused = |_| Err(ServiceError::Bug { reason: "an item was done without the hsm" });
        let step = |item: I, trail: Trail| {
            let planned = plan(item, trail);
            async move {
                let (trail, planned) = planned.await;
                (trail, planned.map(Step::from))
            }
        };
        self.batch_steps(request, items, name, step, finish, unused).await
    }

    /// As [`Inner::batch`], for items that may need no HSM.
    ///
    /// The trail is passed through by value: a closure that borrowed it could not be shown to be `Send`.
    pub(super) async fn batch_steps<I, P, T, F>(
        &self,
        request: &RequestContext,
        items: BatchItems<I>,
        name: impl Fn(&I) -> Trail,
        step: impl Fn(I, Trail) -> F,
        finish: impl Fn(P, Finished) -> Result<T, ServiceError>,
        done: impl Fn(P) -> Result<T, ServiceError>,
    ) -> Result<BatchResults<T>, ServiceError>
    where
        F: Future<Output = (Trail, Result<Step<P>, ServiceError>)>,
    {
        if let Err(error) = check_batch(items.len()) {
            return self.record(request, Trail::unknown(), Err(error)).await;
        }
        let mut operations = Vec::with_capacity(items.len());
        let mut planned = Vec::with_capacity(items.len());
        for item in items {
            planned.push(match item {
                Err(error) => (Trail::unknown(), Err(error)),
                Ok(item) => {
                    let trail = name(&item);
                    let (trail, step) = step(item, trail).await;
                    let step = step.map(|step| match step {
                        Step::Hsm(plan, operation) => {
                            operations.push(operation);
                            (plan, true)
                        }
                        Step::Done(plan) => (plan, false),
                    });
                    (trail, step)
                }
            });
        }
        let answers = self.crypt_all(request, operations).await;
        let mut answers = answers.into_iter();
        let mut results = Vec::with_capacity(planned.len());
        for (mut trail, plan) in planned {
            let result = match plan {
                Err(error) => Err(error),
                Ok((plan, false)) => done(plan),
                Ok((plan, true)) => match answers.next() {
                    Some(Ok(finished)) => {
                        trail.timing = finished.timing;
                        finish(plan, finished)
                    }
                    Some(Err(error)) => Err(error),
                    None => Err(ServiceError::Bug { reason: "the hsm gave too few answers" }),
                },
            };
            results.push((trail, result));
        }
        self.record_batch(request, results).await
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
