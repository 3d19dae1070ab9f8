//! The Holdfast server. Modules stand in the order in which a request meets them:
//! transport -> authn -> authz -> service -> keyring -> { hsm (crate kms-hsm) | store | audit }.
//!
//! `transport` is the only module that names tonic or axum, `store` the only one that holds SQL.

pub mod audit;
pub mod authn;
pub mod keyring;
pub mod service;
pub mod store;
