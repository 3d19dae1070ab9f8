//! Marks: what stands in the token beside its keys.

use super::{Bench, Device, bench, restart, soon};
use crate::error::HsmError;
use crate::hsm::{MAX_MARK_BYTES, Mark};

fn mark(text: &str) -> Mark {
    Mark(text.as_bytes().to_vec())
}

fn put(bench: &Bench, mark: &Mark, replaced: &[Mark]) {
    bench.hsm.put_mark(mark.clone(), replaced.to_vec(), soon()).wait().expect("put a mark");
}

fn marks(bench: &Bench) -> Vec<Mark> {
    let mut marks = bench.hsm.marks(soon()).wait().expect("list marks");
    marks.sort();
    marks
}

/// The token is shared: what is not named stays.
pub fn a_mark_takes_the_place_of_those_it_replaces_and_of_no_other(device: &dyn Device) {
    let bench = bench(device);
    assert_eq!(marks(&bench), []);
    let [one, two, three, another] = ["1", "2", "3", "another's"].map(mark);
    put(&bench, &another, &[]);
    put(&bench, &one, &[]);
    put(&bench, &two, std::slice::from_ref(&one));
    assert_eq!(marks(&bench), [two.clone(), another.clone()]);
    // One of them is gone already.
    put(&bench, &three, &[one, two]);
    assert_eq!(marks(&bench), [three, another]);
}

/// That is what it is for.
pub fn a_mark_survives_a_restart_of_the_provider(device: &dyn Device) {
    let bench = bench(device);
    put(&bench, &mark("7"), &[]);
    let bench = restart(device, bench);
    assert_eq!(marks(&bench), [mark("7")]);
}

/// Whoever lost the answer puts it again.
pub fn putting_a_mark_again_leaves_one(device: &dyn Device) {
    let bench = bench(device);
    put(&bench, &mark("1"), &[]);
    put(&bench, &mark("2"), &[mark("1")]);
    put(&bench, &mark("2"), &[mark("1")]);
    assert_eq!(marks(&bench), [mark("2")]);
}

/// Refused before the token is asked.
pub fn a_mark_at_its_limit_and_one_past_it(device: &dyn Device) {
    let bench = bench(device);
    let most = Mark(vec![7; MAX_MARK_BYTES]);
    put(&bench, &most, &[]);
    assert_eq!(marks(&bench), [most]);
    for length in [0, MAX_MARK_BYTES + 1] {
        let refused = bench.hsm.put_mark(Mark(vec![7; length]), Vec::new(), soon()).wait();
        assert!(matches!(refused, Err(HsmError::Bug { .. })), "{length}: {refused:?}");
    }
}
