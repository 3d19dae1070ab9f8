//! Dev-only: `make bench`. The server beside a bare tonic echo and the bare token, in one run.
//!
//! Everything that is compared goes through the same code: the echo is served by the server's own accept loop, called by
//! the load generator of `kms bench`, with the messages of a Wrap of 32 bytes; echo and server are child processes of
//! their own. Rounds alternate, medians are taken, and the conditions stand in the summary. Never part of what is shipped.

pub mod disk;
pub mod echo;
pub mod error;
pub mod processes;
pub mod rounds;
pub mod scale;
pub mod sealing;
pub mod serve;
pub mod summary;
pub mod token;
