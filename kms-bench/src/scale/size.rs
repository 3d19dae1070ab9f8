//! A tenant of a million keys beside one of a thousand: start, describe, wrap, list, memory, and a key's first use.

use std::sync::Arc;

use kms_cli::bench::Call as _;
use kms_core::clock::{Clock as _, SystemClock};
use kms_core::name::TenantName;
use kms_proto::v1;
use kms_proto::v1::key_service_client::KeyServiceClient;

use super::calls::{Caller, What};
use super::foreground::warm_wraps;
use super::seed::{self, Seeding};
use super::{Place, Plan};
use crate::error::Error;
use crate::processes::Peer;
use crate::rounds::median;

/// Keys that are described, evenly spread.
const DESCRIBED: u32 = 1_000;
/// Pages that are listed, evenly spread.
const LISTED: usize = 10;
/// Keys that are used for the first time.
const COLD: u32 = 2_000;
/// Keys on a page while the places of the listed ones are sought: the most.
const WALK: u32 = 1_000;
/// Restarts of each.
const RESTARTS: usize = 5;
/// Kinds of calls that are compared; they share a window.
const CALLS: u32 = 3;

/// What was found; times of many over those of few.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) ready: f64,
    pub(super) describe: f64,
    pub(super) wrap: f64,
    pub(super) list: f64,
    pub(super) rss_growth_mib: f64,
    pub(super) cold_unwraps: f64,
    pub(super) ready_ms: f64,
    pub(super) rss_mib: f64,
    pub(super) cold_wrap_p50_us: f64,
}

pub(super) fn measure(plan: &Plan, place: &Place) -> Result<Size, Error> {
    let few = place.seeded("few", Seeding { keys: plan.few, due: false })?;
    let many = place.seeded("many", Seeding { keys: plan.keys, due: false })?;
    let (mut ready_few, mut ready_many) = (Vec::new(), Vec::new());
    for _ in 0..RESTARTS {
        for (directory, spans) in [(&few, &mut ready_few), (&many, &mut ready_many)] {
            let (peer, ready) = Peer::server(&place.server, directory)?;
            spans.push(ready.without_login.as_secs_f64() * 1e3);
            peer.stop()?;
        }
    }
    let (few_peer, many_peer) = (place.start(&few)?, place.start(&many)?);
    let few_calls = place.calls(&few_peer, plan.few)?;
    let many_calls = place.calls(&many_peer, plan.keys)?;
    let mut ratios = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..plan.windows {
        for ((few, many), ratios) in few_calls.iter().zip(&many_calls).zip(&mut ratios) {
            let speed = |peer, what| {
                let report = place.window(peer, what, plan.window() / CALLS)?;
                Ok::<_, Error>(report.requests_per_second)
            };
            ratios.push(speed(&few_peer, few)? / speed(&many_peer, many)?);
        }
    }
    let [describe, wrap, list] = ratios.map(|mut ratios| median(&mut ratios));
    let (few_rss, many_rss) = (few_peer.rss_mib()?, many_peer.rss_mib()?);
    let (cold_unwraps, cold_wrap_p50_us) = place.cold(&many_peer, plan.keys)?;
    few_peer.stop()?;
    many_peer.stop()?;
    let (ready_few, ready_many) = (median(&mut ready_few), median(&mut ready_many));
    Ok(Size {
        ready: ready_many / ready_few,
        describe,
        wrap,
        list,
        rss_growth_mib: many_rss - few_rss,
        cold_unwraps,
        ready_ms: ready_many,
        rss_mib: many_rss,
        cold_wrap_p50_us,
    })
}

/// Returns the names of `wanted` of `count` keys, evenly spread, the last quarter left out.
fn spread(tenant: &TenantName, count: u32, wanted: u32) -> Result<Arc<[String]>, Error> {
    let until = count - count / 4;
    let step = (until / wanted).max(1);
    let names = (0..until).step_by(step as usize).take(wanted as usize);
    names.map(|number| Ok(seed::name(tenant, number)?.to_string())).collect()
}

impl Place {
    /// Returns the calls that are compared, in an order that is the same for all servers.
    fn calls(&self, peer: &Peer, count: u32) -> Result<[What; CALLS as usize], Error> {
        let tenant = peer.context.tenant_name()?;
        let described = What::Describe(spread(&tenant, count, DESCRIBED)?);
        Ok([described, warm_wraps(&tenant)?, self.pages(peer, &tenant)?])
    }

    /// Walks through all keys, and returns some places in the list.
    fn pages(&self, peer: &Peer, tenant: &TenantName) -> Result<What, Error> {
        let parent = tenant.to_string();
        let mut tokens = vec![String::new()];
        self.runtime.block_on(async {
            let channel = kms_cli::client::channel(&peer.context).await?;
            let mut client = KeyServiceClient::new(channel);
            loop {
                let page_token = tokens.last().cloned().unwrap_or_default();
                let request = v1::ListKeysRequest {
                    parent: parent.clone(),
                    // Ten places at least, however few the keys are.
                    page_size: if tokens.len() < LISTED { super::calls::PAGE } else { WALK },
                    page_token,
                    ..Default::default()
                };
                let page = client.list_keys(request).await.map_err(|status| Error::Child {
                    what: "the list",
                    detail: status.message().to_owned(),
                })?;
                match page.into_inner().next_page_token {
                    last if last.is_empty() => return Ok::<_, Error>(()),
                    next => tokens.push(next),
                }
            }
        })?;
        let step = (tokens.len() / LISTED).max(1);
        Ok(What::List(parent, tokens.into_iter().step_by(step).take(LISTED).collect()))
    }

    /// Uses keys for the first time; returns how often a wrapped key was opened for each, and how long it took.
    fn cold(&self, peer: &Peer, count: u32) -> Result<(f64, f64), Error> {
        let tenant = peer.context.tenant_name()?;
        // The last ones: nothing before has used them.
        let used = COLD.min(count / 4);
        let names =
            (count - used..count).map(|number| Ok(seed::name(&tenant, number)?.to_string()));
        let names = names.collect::<Result<_, Error>>()?;
        let opened = || peer.metric("holdfast_hsm_unwrapped_keys_total");
        let before = opened()?;
        let p50_us = self.runtime.block_on(wrap_once_each(peer, names))?;
        Ok(((opened()? - before) / f64::from(used), p50_us))
    }
}

/// Wraps once under each key, one after another; returns the median, in microseconds.
async fn wrap_once_each(peer: &Peer, names: Arc<[String]>) -> Result<f64, Error> {
    let count = names.len() as u64;
    let mut caller = Caller::new(kms_cli::client::channel(&peer.context).await?, What::Wrap(names));
    let mut spans = Vec::new();
    for number in 0..count {
        let start = SystemClock.monotonic();
        caller.call(number).await.map_err(|detail| Error::Child { what: "a first use", detail })?;
        let took = SystemClock.monotonic().saturating_duration_since(start);
        spans.push(took.as_secs_f64() * 1e6);
    }
    Ok(median(&mut spans))
}
