//! Keys that are all due at once, as after a long downtime: what callers notice while they are rotated.

use std::time::Duration;

use kms_core::clock::{Clock as _, SystemClock};
use kms_core::name::TenantName;
use kms_proto::v1;
use kms_proto::v1::key_service_client::KeyServiceClient;

use super::calls::What;
use super::foreground::p99;
use super::seed::{self, Seeding};
use super::{Place, Plan};
use crate::error::Error;
use crate::processes::Peer;
use crate::rounds::median;

/// How long it may take until all are rotated.
const LIMIT: Duration = Duration::from_hours(1);
/// Keys on a page while the rotated ones are counted.
const PAGE: u32 = 1_000;

/// What was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storm {
    pub(super) p99_vs_idle: f64,
    pub(super) worst_p99_vs_idle: f64,
    pub(super) seconds: f64,
    pub(super) idle_p99_us: f64,
}

pub(super) fn measure(plan: &Plan, place: &Place) -> Result<Storm, Error> {
    let directory = place.seeded("due", Seeding { keys: plan.due, due: true })?;
    let peer = place.start(&directory)?;
    let tenant = peer.context.tenant_name()?;
    // One that is not due: made now, as its name says.
    let what = What::Wrap([place.calm_key(&peer, &tenant)?].into());
    let mut during = Vec::new();
    let start = SystemClock.monotonic();
    let (mut rotated, mut begun) = (place.rotated(&peer, &tenant)?, None);
    let mut window_start = start;
    let seconds = loop {
        if rotated >= plan.due {
            break SystemClock.monotonic().saturating_duration_since(begun.unwrap_or(start));
        }
        if SystemClock.monotonic().saturating_duration_since(start) > LIMIT {
            return Err(Error::Child {
                what: "the storm",
                detail: format!("{rotated} of {} keys were rotated in {LIMIT:?}", plan.due),
            });
        }
        let window = p99(&place.window(&peer, &what, plan.window())?);
        let now = place.rotated(&peer, &tenant)?;
        // A window without a rotation says nothing of them.
        if now > rotated {
            begun.get_or_insert(window_start);
            during.push(window);
        }
        rotated = now;
        window_start = SystemClock.monotonic();
    };
    let mut idle = Vec::new();
    for _ in 0..plan.windows {
        idle.push(p99(&place.window(&peer, &what, plan.window())?));
    }
    peer.stop()?;
    let idle_p99_us = median(&mut idle);
    let worst = during.iter().copied().fold(0.0, f64::max);
    Ok(Storm {
        p99_vs_idle: median(&mut during) / idle_p99_us,
        worst_p99_vs_idle: worst / idle_p99_us,
        seconds: seconds.as_secs_f64(),
        idle_p99_us,
    })
}

impl Place {
    /// Counts the keys that have a second version.
    fn rotated(&self, peer: &Peer, tenant: &TenantName) -> Result<u32, Error> {
        let failed = |status: tonic::Status| Error::Child {
            what: "the list",
            detail: status.message().to_owned(),
        };
        self.runtime.block_on(async {
            let channel = kms_cli::client::channel(&peer.context).await?;
            let mut client = KeyServiceClient::new(channel);
            let (mut count, mut page_token) = (0, String::new());
            loop {
                let request = v1::ListKeysRequest {
                    parent: tenant.to_string(),
                    page_size: PAGE,
                    page_token,
                    ..Default::default()
                };
                let page = client.list_keys(request).await.map_err(failed)?.into_inner();
                let rotated = page.keys.iter().filter(|key| key.version_count > 1);
                count += u32::try_from(rotated.count()).unwrap_or(u32::MAX);
                if page.next_page_token.is_empty() {
                    return Ok(count);
                }
                page_token = page.next_page_token;
            }
        })
    }

    /// Makes a key without rotation.
    fn calm_key(&self, peer: &Peer, tenant: &TenantName) -> Result<String, Error> {
        let name = seed::name(tenant, u32::MAX)?;
        let new = kms_cli::client::keys::NewKey {
            name: name.clone(),
            owner: "kms bench".into(),
            sensitivity: v1::Sensitivity::Low,
            usage: "foreground".into(),
            cryptoperiod: Duration::from_hours(365 * 24),
            recipient_usage_period: None,
            rotation_period: None,
            protection: v1::Protection::HsmWrapped,
            acknowledge_no_backup: false,
            labels: Vec::new(),
        };
        self.runtime.block_on(async {
            let client = kms_cli::client::Client::connect(&peer.context).await?;
            client.create_key(new, seed::request_id()?).await?;
            Ok(name.to_string())
        })
    }
}
