//! The flags that win over the configuration file.

use std::net::SocketAddr;

use super::{Config, LogFormat, LogLevel};

/// Flags that may stand for a value of the file. None of them is, or names, a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Flags {
    /// Address and port of the gRPC listener; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Address and port of the admin listener; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub admin_listen: Option<SocketAddr>,
    /// Form of log lines
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
    /// What is worth a log line
    #[arg(long, value_enum)]
    pub log_level: Option<LogLevel>,
}

impl Flags {
    /// Lays what was given over a configuration.
    pub const fn apply(&self, config: &mut Config) {
        let Self { listen, admin_listen, log_format, log_level } = self;
        if let Some(address) = listen {
            config.listen.address = *address;
        }
        if let Some(address) = admin_listen {
            config.admin.address = *address;
        }
        if let Some(format) = log_format {
            config.log.format = *format;
        }
        if let Some(level) = log_level {
            config.log.level = *level;
        }
    }
}
