//! The Holdfast server. Modules stand in the order in which a request meets them:
//! transport -> authn -> authz -> service -> keyring -> { hsm (crate kms-hsm) | store | audit | journal }.
//!
//! `transport` and `admin` are the only modules that name tonic or axum, `store` the only one that holds SQL. Beside the
//! path stand `backup`, `config`, `dev`, `hardening`, `telemetry` and `verify_store`, and `assembly`, which puts the parts together.

pub mod admin;
pub mod assembly;
pub mod audit;
pub mod authn;
pub mod authz;
pub mod backup;
pub mod config;
pub mod dev;
pub mod hardening;
pub mod journal;
pub mod keyring;
pub mod service;
pub mod store;
pub mod telemetry;
pub mod transport;
pub mod verify_store;
