//! Batches: many items on one HSM worker, one record an item, one append, one result an item.

use kms_hsm::{CryptoOp, Finished};

use super::kms::{Inner, check_batch};
use super::trail::Trail;
use super::{BatchResults, RequestContext, ServiceError};

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

/// The items of a batch, each planned or refused, in order.
pub(super) struct Batch<P> {
    operations: Vec<CryptoOp>,
    items: Vec<(Trail, Result<Planned<P>, ServiceError>)>,
}

struct Planned<P> {
    plan: P,
    needs_hsm: bool,
}

impl<P> Batch<P> {
    /// Adds an item.
    pub(super) fn push(&mut self, trail: Trail, step: Result<impl Into<Step<P>>, ServiceError>) {
        let planned = step.map(|step| match step.into() {
            Step::Hsm(plan, operation) => {
                self.operations.push(operation);
                Planned { plan, needs_hsm: true }
            }
            Step::Done(plan) => Planned { plan, needs_hsm: false },
        });
        self.items.push((trail, planned));
    }

    /// Adds an item that was refused before it could be planned.
    pub(super) fn refuse(&mut self, error: ServiceError) {
        self.items.push((Trail::unknown(), Err(error)));
    }
}

impl Inner {
    /// Starts a batch; one without items, or with too many, is refused and recorded as a whole.
    pub(super) async fn start_batch<P>(
        &self,
        request: &RequestContext,
        length: usize,
    ) -> Result<Batch<P>, ServiceError> {
        match check_batch(length) {
            Ok(()) => Ok(Batch {
                operations: Vec::with_capacity(length),
                items: Vec::with_capacity(length),
            }),
            Err(error) => self.record(request, Trail::unknown(), Err(error)).await,
        }
    }

    /// Gives all items to one worker, finishes and records each. An item that needed no HSM is finished with `None`.
    pub(super) async fn finish_batch<P, T>(
        &self,
        request: &RequestContext,
        batch: Batch<P>,
        finish: fn(P, Option<Finished>) -> Result<T, ServiceError>,
    ) -> Result<BatchResults<T>, ServiceError> {
        let mut answers = self.crypt_all(request, batch.operations).await.into_iter();
        let mut results = Vec::with_capacity(batch.items.len());
        for (mut trail, planned) in batch.items {
            let result = match planned {
                Err(error) => Err(error),
                Ok(Planned { plan, needs_hsm: false }) => finish(plan, None),
                Ok(Planned { plan, needs_hsm: true }) => match answers.next() {
                    Some(Ok(finished)) => {
                        trail.timing = finished.timing;
                        finish(plan, Some(finished))
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
