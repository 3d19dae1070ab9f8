//! The methods of KeyService about aliases: to domain types and back, every field.

use http::Request;
use hyper::body::Incoming;
use kms_core::id::Revision;
use kms_core::name::{AliasName, InvalidName, KeyName, VersionName};
use kms_proto::v1 as proto;

use super::bounds::{NONE, one};
use super::decode::{Decoded, field, parse, request_id};
use super::encode;
use super::gateway::Call;
use super::key::{mutation, reading};
use super::route::Answer;
use crate::service::{
    AliasDescription, AliasError, CreateAlias, DeleteAlias, Kms, ListAliases, Page, UpdateAlias,
};

mutation!(create_alias, NONE, decode_create, encode_alias);
mutation!(update_alias, NONE, decode_update, encode_alias);
mutation!(delete_alias, NONE, decode_delete, encode_alias);
reading!(describe_alias, decode_describe, |name| &name, encode_alias);
reading!(list_aliases, decode_list, |list| list, encode_aliases);

/// Reads what an alias is to point to: a key, and not any other name that we know.
fn target(text: &str) -> Decoded<KeyName> {
    let is_another = || text.parse::<AliasName>().is_ok() || text.parse::<VersionName>().is_ok();
    text.parse().map_err(
        |error: InvalidName| {
            if is_another() { AliasError::Target.into() } else { field("key", error) }
        },
    )
}

fn decode_create(message: proto::CreateAliasRequest) -> Decoded<CreateAlias> {
    let proto::CreateAliasRequest { parent, alias_id, key, reason, request_id: id } = message;
    let name = AliasName::new(parse("parent", &parent)?, &alias_id)
        .map_err(|error| field("alias_id", error))?;
    Ok(CreateAlias { name, key: target(&key)?, reason, request_id: request_id(&id)? })
}

fn decode_update(message: proto::UpdateAliasRequest) -> Decoded<UpdateAlias> {
    let proto::UpdateAliasRequest { name, key, revision, reason, request_id: id } = message;
    Ok(UpdateAlias {
        name: parse("name", &name)?,
        key: target(&key)?,
        revision: Revision::new(revision),
        reason,
        request_id: request_id(&id)?,
    })
}

fn decode_delete(message: proto::DeleteAliasRequest) -> Decoded<DeleteAlias> {
    let proto::DeleteAliasRequest { name, revision, reason, request_id: id } = message;
    Ok(DeleteAlias {
        name: parse("name", &name)?,
        revision: Revision::new(revision),
        reason,
        request_id: request_id(&id)?,
    })
}

fn decode_describe(message: proto::DescribeAliasRequest) -> Decoded<AliasName> {
    let proto::DescribeAliasRequest { name } = message;
    parse("name", &name)
}

fn decode_list(message: proto::ListAliasesRequest) -> Decoded<ListAliases> {
    let proto::ListAliasesRequest { parent, key, page_size, page_token } = message;
    let key = if key.is_empty() { None } else { Some(parse("key", &key)?) };
    Ok(ListAliases { tenant: parse("parent", &parent)?, key, page_size, page_token })
}

fn encode_alias(result: AliasDescription) -> proto::Alias {
    let AliasDescription { name, key, create_time, update_time, actor, reason, revision } = result;
    proto::Alias {
        name: name.to_string(),
        key: key.to_string(),
        create_time: Some(encode::time(create_time)),
        update_time: Some(encode::time(update_time)),
        actor,
        reason,
        revision: revision.get(),
    }
}

fn encode_aliases(page: Page<AliasDescription>) -> proto::ListAliasesResponse {
    let Page { items, next_page_token } = page;
    let aliases = items.into_iter().map(encode_alias).collect();
    proto::ListAliasesResponse { aliases, next_page_token }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_points_to_a_key_and_to_nothing_else() {
        assert!(target("tenants/t/keys/k").is_ok());
        for other in ["tenants/t/aliases/a", "tenants/t/keys/k/versions/1"] {
            assert_eq!(target(other).unwrap_err().reason(), "ALIAS_TARGET", "{other}");
        }
        for text in ["", "k", "tenants/t", "tenants/t/aliases/A", "/versions/1"] {
            assert_eq!(target(text).unwrap_err().reason(), "FIELD_VIOLATION", "{text}");
        }
    }
}
