//! Assembly: the one place that knows which concrete HSM, store, audit log, clock and policy are used.
//!
//! Order at start: configuration, audit log and store, sockets, HSM, roots, use-cases, serving. Readiness stays no until
//! the roots are open and the database was found to be the one that the log has last seen. Order at the end: readiness off,
//! listeners drain, mutations finish, leases return, audit log, store and HSM close.

mod compare;
mod database;
mod error;
mod journal;
mod live;
mod missing;
mod open;
mod parts;
mod ready;
mod refusals;
mod restore;
mod root_change;
mod roots;
mod run;
mod signals;
mod sockets;
mod start;
mod steps;
mod stop;
mod threads;
mod verify;

pub use error::{
    EXIT_AT_ONCE, EXIT_CONFIG, EXIT_DIVERGED, EXIT_HELD, EXIT_HSM, EXIT_INTERNAL, EXIT_SOCKET,
    EXIT_STATE, StartError,
};
pub use missing::MissingRoots;
pub use ready::ReadyFile;
pub use restore::{RestoreError, RestoreOrder, Restored, restore};
pub use root_change::{RootChange, change_root};
pub use run::{Ended, Mode, run};
pub use threads::serving_threads;
pub use verify::verify_store;
