//! The wire contract is pinned: services, methods, messages, fields and enums, as a text that people can read in a diff.
//!
//! HOLDFAST_WRITE_GOLDEN=1 writes the file anew. A changed or removed line breaks clients that are in use, an added one is
//! a promise: either is a wire change and needs a line in CHANGELOG.md.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test program: a failure here is a failed test"
)]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    MethodDescriptorProto,
};

const GOLDEN_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/wire_contract.txt");
/// Our own part of the set: the imported files of google are not ours to pin.
const PACKAGE: &str = "kms.v1";

fn contract() -> FileDescriptorSet {
    let mut set = FileDescriptorSet::decode(kms_proto::FILE_DESCRIPTOR_SET).unwrap();
    set.file.retain(|file| file.package() == PACKAGE);
    set
}

/// Full names to their lines. Sorted, so that moving a definition to another place or file is no change.
type Lines = BTreeMap<String, Vec<String>>;

fn text(set: &FileDescriptorSet) -> String {
    let mut lines = Lines::new();
    for file in &set.file {
        let package = format!(".{}", file.package());
        for service in &file.service {
            let mut methods: Vec<_> = service.method.iter().map(method_line).collect();
            methods.sort();
            lines.insert(format!("service {package}.{}", service.name()), methods);
        }
        for message in &file.message_type {
            add_message(&package, message, &mut lines);
        }
        for one in &file.enum_type {
            add_enum(&package, one, &mut lines);
        }
    }
    let mut text = String::new();
    for (name, lines) in lines {
        writeln!(text, "{name}").unwrap();
        for line in lines {
            writeln!(text, "  {line}").unwrap();
        }
    }
    text
}

fn method_line(method: &MethodDescriptorProto) -> String {
    let stream = |streaming: bool| if streaming { "stream " } else { "" };
    format!(
        "{}: {}{} -> {}{}",
        method.name(),
        stream(method.client_streaming()),
        method.input_type(),
        stream(method.server_streaming()),
        method.output_type(),
    )
}

fn add_message(scope: &str, message: &DescriptorProto, lines: &mut Lines) {
    let name = format!("{scope}.{}", message.name());
    let mut fields: Vec<_> = message.field.iter().collect();
    fields.sort_by_key(|field| field.number());
    let mut told: Vec<_> = fields.into_iter().map(|field| field_line(message, field)).collect();
    if message.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry) {
        told.push("map entry".to_owned());
    }
    // The end of a message's range is exclusive.
    let ranges = message.reserved_range.iter().map(|range| (range.start(), range.end() - 1));
    told.extend(reserved(ranges, &message.reserved_name));
    lines.insert(format!("message {name}"), told);
    for nested in &message.nested_type {
        add_message(&name, nested, lines);
    }
    for nested in &message.enum_type {
        add_enum(&name, nested, lines);
    }
}

fn field_line(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let label = match field.label() {
        Label::Optional if field.proto3_optional() => "optional ",
        Label::Optional => "",
        Label::Repeated => "repeated ",
        Label::Required => "required ",
    };
    let kind = match field.r#type() {
        Type::Message | Type::Enum | Type::Group => field.type_name().to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let mut line = format!("{} {}: {label}{kind}", field.number(), field.name());
    if let Some(packed) = field.options.as_ref().and_then(|options| options.packed) {
        write!(line, " packed={packed}").unwrap();
    }
    if let Some(index) = field.oneof_index.filter(|_| !field.proto3_optional()) {
        let oneof = &message.oneof_decl[usize::try_from(index).unwrap()];
        write!(line, " in {}", oneof.name()).unwrap();
    }
    line
}

fn add_enum(scope: &str, one: &EnumDescriptorProto, lines: &mut Lines) {
    let mut values: Vec<_> = one.value.iter().collect();
    values.sort_by_key(|value| value.number());
    let mut told: Vec<_> =
        values.iter().map(|value| format!("{} {}", value.number(), value.name())).collect();
    let ranges = one.reserved_range.iter().map(|range| (range.start(), range.end()));
    told.extend(reserved(ranges, &one.reserved_name));
    lines.insert(format!("enum {scope}.{}", one.name()), told);
}

fn reserved(ranges: impl Iterator<Item = (i32, i32)>, names: &[String]) -> Vec<String> {
    let ranges = ranges.map(|(first, last)| format!("reserved {first} to {last}"));
    ranges.chain(names.iter().map(|name| format!("reserved {name}"))).collect()
}

#[test]
fn the_wire_contract_is_that_of_the_golden_file() {
    let made = text(&contract());
    if std::env::var_os("HOLDFAST_WRITE_GOLDEN").is_some() {
        std::fs::write(GOLDEN_PATH, &made).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN_PATH).unwrap();
    let of = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (made, golden) = (of(&made), of(&golden));
    let gone: Vec<_> = golden.iter().filter(|line| !made.contains(line)).collect();
    let new: Vec<_> = made.iter().filter(|line| !golden.contains(line)).collect();
    assert!(
        made == golden,
        "the wire contract has changed, or a part of it has moved:\n  gone: {gone:#?}\n  new: {new:#?}\n\
         A wire change needs a line in CHANGELOG.md; then write {GOLDEN_PATH} anew with \
         `HOLDFAST_WRITE_GOLDEN=1 cargo test -p kms-proto --test wire_contract`."
    );
}

/// Returns the first message with this name, for a change.
fn message<'a>(set: &'a mut FileDescriptorSet, name: &str) -> &'a mut DescriptorProto {
    let mut all = set.file.iter_mut().flat_map(|file| &mut file.message_type);
    all.find(|message| message.name() == name).unwrap()
}

type Change = fn(&mut FileDescriptorSet);

#[test]
fn every_kind_of_change_shows() {
    let changes: [(&str, Change); 14] = [
        ("number", |set| message(set, "WrapRequest").field[0].number = Some(9)),
        ("name", |set| message(set, "WrapRequest").field[0].name = Some("k".into())),
        ("type", |set| message(set, "WrapRequest").field[0].set_type(Type::Bytes)),
        ("label", |set| message(set, "WrapRequest").field[0].set_label(Label::Repeated)),
        ("presence", |set| message(set, "WrapRequest").field[0].proto3_optional = Some(true)),
        ("type name", |set| {
            message(set, "BatchWrapRequest").field[0].type_name = Some(".kms.v1.Key".into());
        }),
        ("nested", |set| {
            message(set, "BatchWrapResponse").nested_type[0].field[0].number = Some(9);
        }),
        ("removed field", |set| drop(message(set, "WrapRequest").field.pop())),
        ("reserved name", |set| message(set, "Key").reserved_name.push("x".into())),
        ("reserved number", |set| {
            let range =
                prost_types::descriptor_proto::ReservedRange { start: Some(90), end: Some(91) };
            message(set, "Key").reserved_range.push(range);
        }),
        ("enum value", |set| {
            let mut enums = set.file.iter_mut().flat_map(|file| &mut file.enum_type);
            enums.next().unwrap().value[1].number = Some(9);
        }),
        ("client stream", |set| set.file[0].service[0].method[0].client_streaming = Some(true)),
        ("server stream", |set| set.file[0].service[0].method[0].server_streaming = Some(true)),
        ("removed method", |set| drop(set.file[0].service[0].method.pop())),
    ];
    let before = text(&contract());
    for (what, change) in changes {
        let mut set = contract();
        change(&mut set);
        assert_ne!(text(&set), before, "{what}");
    }
}
