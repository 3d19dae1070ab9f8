//! The domain-separation strings, pinned: changing one is a change of a format.

use kms_core::domain;

const GOLDEN: &str = include_str!("golden/domains.txt");

#[test]
fn the_strings_are_those_of_the_golden_file() {
    let lines: Vec<&[u8]> = GOLDEN.lines().map(str::as_bytes).collect();
    assert_eq!(domain::ALL.as_slice(), lines.as_slice());
}

#[test]
fn no_string_is_a_prefix_of_another() {
    for (i, a) in domain::ALL.iter().enumerate() {
        for (j, b) in domain::ALL.iter().enumerate() {
            assert!(i == j || !b.starts_with(a), "{i} is a prefix of {j}");
        }
    }
}
