//! Several calls in flight, their answers in order.
//!
//! Reading, writing and syncing are done on the caller's thread; the calls go on meanwhile on a thread of the runtime.

use std::collections::VecDeque;
use std::io::BufRead;
use std::sync::Arc;

use kms_core::context::EncryptionContext;
use kms_core::name::KeyName;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::batch::{Batch, Limits};
use super::error::RunError;
use super::paths::bug;
use super::progress::Bar;
use super::record::Records;
use super::sink::Sink;
use crate::client::batch::Outcome;
use crate::client::{Client, ClientError};
use crate::context::ResolvedContext;
use crate::error::CliError;

/// Calls in flight: enough for the server to have the next one while the answer of one is written. Each holds at most
/// [`super::batch::MAX_STRETCH_BYTES`] of the file and a record, besides messages of 4 MiB.
const IN_FLIGHT: usize = 4;

/// A call that was made.
type Call = JoinHandle<Result<Vec<Outcome>, ClientError>>;

/// The connection, and what all calls have in common.
#[derive(Debug)]
pub(super) struct Pump {
    runtime: Runtime,
    client: Client,
    key: KeyName,
    binding: Arc<EncryptionContext>,
    limits: Limits,
}

impl Pump {
    /// Connects, for calls of `batch_size` items.
    pub(super) fn connect(
        context: &ResolvedContext,
        key: KeyName,
        binding: EncryptionContext,
        batch_size: u16,
    ) -> Result<Self, RunError> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|_| bug("no runtime can be started"))?;
        let client = runtime.block_on(Client::connect(context)).map_err(CliError::from)?;
        let limits = Limits::new(batch_size, &key, &binding);
        Ok(Self { runtime, client, key, binding: Arc::new(binding), limits })
    }

    /// Rewraps all records into the sink.
    ///
    /// # Errors
    /// The first in the order of the file. The stretches before it are in the sink, without a checkpoint.
    pub(super) fn run<R: BufRead>(
        &self,
        records: &mut Records<R>,
        sink: &mut Sink,
        bar: &Bar,
        keep_going: bool,
    ) -> Result<(), RunError> {
        let mut in_flight: VecDeque<(Batch, Call)> = VecDeque::with_capacity(IN_FLIGHT);
        let mut reading = Ok(true);
        loop {
            while matches!(reading, Ok(true)) && in_flight.len() < IN_FLIGHT {
                match Batch::read(records, self.limits, keep_going) {
                    Ok(Some(batch)) => {
                        let call = self.call(&batch);
                        in_flight.push_back((batch, call));
                    }
                    Ok(None) => reading = Ok(false),
                    // What was read before it is done first: an earlier item may fail too.
                    Err(error) => reading = Err(error),
                }
            }
            let Some((batch, call)) = in_flight.pop_front() else { return reading.map(drop) };
            let outcomes = self.runtime.block_on(call).map_err(|_| bug("a call has no end"))?;
            let outcomes = outcomes.map_err(CliError::from)?;
            let done = batch.finish(outcomes, keep_going)?;
            let items = done.tally.items;
            sink.write(done)?;
            bar.add(items);
        }
    }

    fn call(&self, batch: &Batch) -> Call {
        let (client, key) = (self.client.clone(), self.key.clone());
        let (binding, envelopes) = (Arc::clone(&self.binding), batch.envelopes());
        self.runtime.spawn(async move {
            if envelopes.is_empty() {
                return Ok(Vec::new());
            }
            client.batch_rewrap(&key, &envelopes, &binding).await
        })
    }
}
