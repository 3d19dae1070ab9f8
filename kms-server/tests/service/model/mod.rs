//! The whole life of a key against a small model: random calls, clock steps, reconciler runs and restarts; each answer, and what
//! is seen of the key afterwards, must be the model's. The cases are the same in every run.

mod key;
mod run;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use kms_core::key::{Protection, Sensitivity};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::support::World;

/// Lives that are tried.
const CASES: u32 = 150;
/// Lives that are tried on PostgreSQL.
const CASES_ON_POSTGRES: u32 = 16;
/// The most steps, or strings of them, in one life.
const MAX_STEPS: usize = 40;

/// One step of a life. Numbers name versions, and are taken modulo those there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Rotate,
    /// With a date so many hours ahead, or without.
    Stage(Option<u8>),
    Activate(u8),
    Discard(u8),
    Disable,
    Enable,
    /// Whether recent use and consumers are overridden.
    ScheduleKey(bool, bool),
    CancelKey,
    Suspend(u8),
    Resume(u8),
    Deactivate(u8),
    Compromise(u8),
    /// Whether recent use and consumers are overridden.
    Schedule(u8, bool, bool),
    Cancel(u8),
    Register,
    Remove,
    Wrap,
    Unwrap(u8),
    Rewrap(u8),
    Advance(Duration),
    Reconcile,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let hour = Duration::from_hours(1);
    let spans = [hour, hour * 12, hour * 24, hour * 24 * 4, hour * 24 * 7, hour * 24 * 30];
    prop_oneof![
        3 => Just(Op::Rotate),
        4 => proptest::option::of(1..30_u8).prop_map(Op::Stage),
        1 => any::<u8>().prop_map(Op::Activate),
        1 => any::<u8>().prop_map(Op::Discard),
        3 => Just(Op::Disable),
        2 => Just(Op::Enable),
        3 => any::<(bool, bool)>().prop_map(|(recent, consumers)| Op::ScheduleKey(recent, consumers)),
        1 => Just(Op::CancelKey),
        1 => any::<u8>().prop_map(Op::Suspend),
        1 => any::<u8>().prop_map(Op::Resume),
        2 => any::<u8>().prop_map(Op::Deactivate),
        1 => any::<u8>().prop_map(Op::Compromise),
        4 => any::<(u8, bool, bool)>().prop_map(|(n, recent, all)| Op::Schedule(n, recent, all)),
        1 => any::<u8>().prop_map(Op::Cancel),
        2 => Just(Op::Register),
        1 => Just(Op::Remove),
        3 => Just(Op::Wrap),
        6 => any::<u8>().prop_map(Op::Unwrap),
        2 => any::<u8>().prop_map(Op::Rewrap),
        7 => proptest::sample::select(spans.to_vec()).prop_map(Op::Advance),
        5 => Just(Op::Reconcile),
        1 => Just(Op::Restart),
    ]
}

fn life() -> impl Strategy<Value = (Protection, Sensitivity, Vec<Op>)> {
    let protections = [Protection::HsmWrapped, Protection::HsmWrapped, Protection::HsmResident];
    let protection = proptest::sample::select(protections.to_vec());
    let sensitivity = proptest::sample::select(vec![Sensitivity::Low, Sensitivity::High]);
    let steps = prop_oneof![12 => op().prop_map(|op| vec![op]), 1 => any::<(u8, bool, bool)>().prop_map(held)];
    let ops = vec(steps, 1..MAX_STEPS).prop_map(|steps| steps.concat());
    (protection, sensitivity, ops)
}

/// What chance seldom strings together: something is quiet, its destruction is planned, and then somebody uses
/// it, or registers.
fn held((number, whole_key, by_consumer): (u8, bool, bool)) -> Vec<Op> {
    let day = Duration::from_hours(24);
    let plan = if whole_key {
        [Op::Disable, Op::Advance(day * 30), Op::ScheduleKey(false, false)]
    } else {
        [Op::Deactivate(number), Op::Advance(day * 30), Op::Schedule(number, false, false)]
    };
    let holds = if by_consumer { Op::Register } else { Op::Unwrap(number) };
    let wanted = [Op::Advance(day * 4), holds, Op::Advance(day * 4), Op::Reconcile];
    [&[Op::Remove, Op::Rotate][..], &plan, &wanted].concat()
}

/// What has to happen somewhere in the lives: a model of which half is never reached proves half.
const MUST_HAPPEN: [&str; 27] = [
    "ACCEPTED",
    "CONSUMERS_REGISTERED",
    "CONSUMER_EXISTS",
    "CONSUMER_NOT_FOUND",
    "ILLEGAL_TRANSITION",
    "KEY_DESTROYED",
    "KEY_DESTROY_SCHEDULED",
    "KEY_DISABLED",
    "KEY_ENABLED",
    "KEY_NOT_ACTIVE",
    "KEY_NOT_DISABLED",
    "KEY_NOT_SCHEDULED",
    "PRIMARY_VERSION",
    "RECENTLY_USED",
    "VERSION_STAGED",
    "a compromised version was unwrapped",
    "a destruction of a key was held by a consumer",
    "a destruction of a key was held by somebody who wants it",
    "a destruction of a version was held by a consumer",
    "a destruction of a version was held by somebody who wants it",
    "a key was destroyed",
    "a staged version became the primary at its date",
    "a staged version became the primary by a rotation",
    "a version was destroyed",
    "a version was rewrapped",
    "an old version was unwrapped",
    "the key was compromised and replaced",
];

#[test]
fn lives_of_a_key_are_those_of_the_model() {
    let happened = lives(CASES, World::new);
    let missing: Vec<_> = MUST_HAPPEN.iter().filter(|what| !happened.contains(**what)).collect();
    assert!(missing.is_empty(), "never happened: {missing:?}");
}

/// The first of the same lives: each takes a database of its own, and each step some commits.
#[test]
fn lives_of_a_key_on_postgres_are_those_of_the_model() {
    let happened = lives(CASES_ON_POSTGRES, World::on_postgres);
    let reached = MUST_HAPPEN.iter().filter(|what| happened.contains(**what)).count();
    assert!(reached >= MUST_HAPPEN.len() / 2, "too little happened: {happened:?}");
}

/// Lives so many lives, each in a world of its own; returns what happened.
fn lives<F: Future<Output = World>>(cases: u32, world: impl Fn() -> F) -> BTreeSet<&'static str> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let happened = Mutex::new(BTreeSet::new());
    TestRunner::new_with_rng(config, rng)
        .run(&life(), |(protection, sensitivity, ops)| {
            let living = async { run::live(world().await, protection, sensitivity, &ops).await };
            let seen = runtime.block_on(living).map_err(TestCaseError::fail)?;
            happened.lock().unwrap().extend(seen);
            Ok(())
        })
        .unwrap();
    happened.into_inner().unwrap()
}
