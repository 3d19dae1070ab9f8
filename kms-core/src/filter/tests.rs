use proptest::prelude::*;

use super::*;

const T: i64 = 1_700_000_000_000;

fn labels() -> BTreeMap<String, String> {
    [("team", "blue"), ("a.b/c", "x y")].map(|(key, value)| (key.into(), value.into())).into()
}

fn facts(labels: &BTreeMap<String, String>) -> KeyFacts<'_> {
    KeyFacts {
        name: "tenants/t/keys/orders-1",
        state: KeyState::Enabled,
        owner: "team \"blue\"",
        usage: "orders",
        sensitivity: Sensitivity::High,
        protection: Protection::HsmWrapped,
        origin: Origin::Generated,
        labels,
        create_time: Timestamp::from_unix_ms(T),
        update_time: Timestamp::from_unix_ms(T + 1),
        next_rotation_time: None,
        last_use_time: Some(Timestamp::from_unix_ms(T + 1000)),
        version_count: 3,
        consumer_count: 0,
    }
}

fn passes(text: &str) -> bool {
    let filter = Filter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    filter.expect("a filter").passes(&facts(&labels()))
}

fn refused(text: &str) -> String {
    Filter::parse(text).expect_err(text).to_string()
}

#[test]
fn nothing_is_no_filter() {
    assert_eq!(Filter::parse(""), Ok(None));
    assert_eq!(Filter::parse(" \t\n"), Ok(None));
}

#[test]
fn every_field_compares_as_its_kind_does() {
    for (yes, no) in [
        ("name = tenants/t/keys/orders-1", "name = tenants/t/keys/orders-2"),
        ("name = tenants/t/keys/*", "name = tenants/u/keys/*"),
        ("name = *-1", "name = *-2"),
        ("name = *orders*", "name != *orders*"),
        ("owner = \"team \\\"blue\\\"\"", "owner = \"team blue\""),
        ("owner : blue", "owner : red"),
        ("usage != billing", "usage != orders"),
        ("state = ENABLED", "state = DISABLED"),
        ("state != disabled", "state != enabled"),
        ("sensitivity = HIGH", "sensitivity = LOW"),
        ("protection : HSM_WRAPPED", "protection = HSM_RESIDENT"),
        ("origin = GENERATED", "origin = IMPORTED"),
        ("labels.team = blue", "labels.team = red"),
        ("labels.\"a.b/c\" = 'x y'", "labels.a.b/c = x"),
        ("labels.team:*", "labels.none:*"),
        ("labels:team", "labels:none"),
        ("labels.none != x", "labels.none = x"),
        ("create_time = \"2023-11-14T22:13:20Z\"", "create_time != \"2023-11-14T22:13:20Z\""),
        ("create_time <= '2023-11-14T22:13:20Z'", "create_time < '2023-11-14T22:13:20Z'"),
        ("update_time > '2023-11-14T22:13:20Z'", "create_time > '2023-11-14T22:13:20Z'"),
        ("last_use_time >= '2023-11-14T22:13:21Z'", "last_use_time >= '2023-11-14T22:13:21.001Z'"),
        ("last_use_time:*", "next_rotation_time:*"),
        ("version_count > 2", "version_count > 3"),
        ("version_count >= 3", "version_count < 3"),
        ("consumer_count = 0", "consumer_count != 0"),
    ] {
        assert!(passes(yes), "{yes}");
        assert!(!passes(no), "{no}");
    }
}

#[test]
fn a_star_that_is_escaped_stands_for_itself() {
    let passes = |filter: &str, owner: &str| {
        let labels = labels();
        Filter::parse(filter).unwrap().unwrap().passes(&KeyFacts { owner, ..facts(&labels) })
    };
    for (filter, yes, no) in [
        (r#"owner = "\*""#, "*", "a"),
        (r#"owner = "a\*""#, "a*", "ab"),
        (r#"owner = "\*a""#, "*a", "ba"),
        (r#"owner = "\**""#, "*b", "b"),
        (r#"owner = "*\*""#, "b*", "b"),
        (r#"owner = "a\*b""#, "a*b", "axb"),
        (r#"owner = "a*b""#, "a*b", "axb"),
        (r#"owner = "a*""#, "ab", "b"),
    ] {
        assert!(passes(filter, yes), "{filter} {yes}");
        assert!(!passes(filter, no), "{filter} {no}");
    }
}

#[test]
fn what_is_not_there_is_neither_before_nor_after_anything() {
    for operator in ["<", "<=", "=", ">=", ">"] {
        assert!(!passes(&format!("next_rotation_time {operator} '2023-11-14T22:13:20Z'")));
    }
    assert!(passes("next_rotation_time != '2023-11-14T22:13:20Z'"));
}

#[test]
fn or_binds_tighter_than_and_and_negations_tighter_than_both() {
    assert!(!passes("state = DISABLED AND state = ENABLED OR state = ENABLED"));
    assert!(passes("(state = DISABLED AND state = ENABLED) OR state = ENABLED"));
    assert!(passes("NOT state = DISABLED AND -origin = IMPORTED"));
    assert!(passes("NOT NOT state = ENABLED"));
    assert!(!passes("NOT (state = ENABLED OR state = DISABLED)"));
}

#[test]
fn only_a_filter_that_names_the_last_use_asks_for_it() {
    let asks = |text: &str| Filter::parse(text).unwrap().unwrap().asks_last_use();
    assert!(asks("state = ENABLED AND (owner = x OR NOT last_use_time:*)"));
    assert!(!asks("state = ENABLED AND owner = last_use_time"));
}

#[test]
fn an_error_names_the_column_and_what_was_expected() {
    for (text, column, part) in [
        ("stat = ENABLED", 1, "`stat` is no field: name, owner"),
        ("state ENABLED", 7, "one of = != < <= > >= :"),
        ("state =", 8, "a value is expected"),
        ("state = ON", 9, "one of ENABLED, DISABLED"),
        ("state < ENABLED", 7, "= or !="),
        ("owner > x", 7, "= != or :"),
        ("labels = x", 8, "labels.KEY"),
        ("labels. = x", 1, "no field"),
        ("create_time > 2026", 15, "a quoted time"),
        ("create_time:*", 13, "a quoted time"),
        ("version_count = -1", 17, "a value is expected"),
        ("version_count = 4294967296", 17, "a whole number"),
        ("owner = x owner = y", 11, "AND or OR"),
        ("(owner = x", 11, "`)` is missing"),
        ("(owner = x owner", 12, "AND, OR or `)`"),
        ("owner = x)", 10, "closes nothing"),
        ("owner = \"x", 9, "does not end"),
        ("owner = \"\\n\"", 10, "only"),
        ("owner = x AND", 14, "a field is expected"),
        ("owner = ü", 9, "only in quotes"),
        ("owner ! x", 7, "`!=`"),
        ("\"owner\" = x", 1, "a field is expected"),
    ] {
        let said = refused(text);
        assert!(said.starts_with(&format!("column {column}: ")), "{text}: {said}");
        assert!(said.contains(part), "{text}: {said}");
    }
}

#[test]
fn length_terms_and_depth_are_bounded() {
    let long = |bytes: usize| format!("owner = {}", "x".repeat(bytes - 8));
    assert!(Filter::parse(&long(MAX_FILTER_BYTES)).is_ok());
    assert_eq!(Filter::parse(&long(MAX_FILTER_BYTES + 1)), Err(InvalidFilter::TooLong));

    let terms = |count: usize| vec!["owner = x"; count].join(" OR ");
    assert!(Filter::parse(&terms(MAX_FILTER_TERMS)).is_ok());
    assert_eq!(Filter::parse(&terms(MAX_FILTER_TERMS + 1)), Err(InvalidFilter::TooManyTerms));

    let deep = |depth: usize| format!("{}owner = x{}", "(".repeat(depth), ")".repeat(depth));
    assert!(Filter::parse(&deep(MAX_FILTER_DEPTH)).is_ok());
    assert_eq!(Filter::parse(&deep(MAX_FILTER_DEPTH + 1)), Err(InvalidFilter::TooDeep));
    let negated = |depth: usize| format!("{}owner = x", "NOT ".repeat(depth));
    assert!(Filter::parse(&negated(MAX_FILTER_DEPTH)).is_ok());
    assert_eq!(Filter::parse(&negated(MAX_FILTER_DEPTH + 1)), Err(InvalidFilter::TooDeep));
}

fn token() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("AND".to_owned()),
        Just("OR".to_owned()),
        Just("NOT".to_owned()),
        Just("(".to_owned()),
        Just(")".to_owned()),
        Just("-".to_owned()),
        Just("owner = x".to_owned()),
        Just("labels.\"k\" : *".to_owned()),
        Just("version_count >= 2".to_owned()),
        ".{0,6}",
    ]
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(tokens in prop::collection::vec(token(), 0..40)) {
        if let Ok(Some(filter)) = Filter::parse(&tokens.join(" ")) {
            filter.passes(&facts(&labels()));
            filter.asks_last_use();
        }
    }

    #[test]
    fn a_quoted_text_is_compared_as_it_is(text in "[*]{0,2}[a\"\\\\*]{0,3}.{0,20}[*]{0,2}", other in "[*a]{0,4}") {
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"").replace('*', "\\*");
        let filter = Filter::parse(&format!("owner = \"{quoted}\"")).unwrap().unwrap();
        let labels = labels();
        for owner in [text.clone(), format!("{other}{text}"), format!("{text}{other}")] {
            let key = KeyFacts { owner: &owner, ..facts(&labels) };
            prop_assert_eq!(filter.passes(&key), owner == text);
        }
    }
}
