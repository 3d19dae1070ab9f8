//! Dev mode: everything in one directory, one command, no set-up.
//!
//! It must never be mistaken for production: PIN and CA key lie in files beside what they protect, and it says so. Every
//! step of the first start is repeatable and put in its place whole, so that an interrupted one is resumed.

mod directory;
mod exec;
mod module;
pub mod pki;
mod setup;

pub use directory::{DevDirectory, DevError};
pub use exec::enter;
pub use module::find_module;
pub use setup::{DEV_TENANT, banner, prepare, write_cli_context};
