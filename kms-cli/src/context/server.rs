//! The address of a server: `https://HOST[:PORT]`.

use std::fmt;
use std::str::FromStr;

use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tonic::transport::Uri;

use super::ContextError;

/// The port when an address names none.
pub const DEFAULT_PORT: u16 = 8443;

/// A checked server address. There is no plain-text form: `http://` is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerAddress {
    host: String,
    port: u16,
}

impl ServerAddress {
    /// Returns the host, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns the port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns `HOST:PORT`, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// Returns the name that the server's certificate must carry.
    pub fn tls_name(&self) -> Result<ServerName<'static>, ContextError> {
        ServerName::try_from(self.host.clone())
            .map_err(|_| refused(&self.host, "the host is neither a DNS name nor an IP address"))
    }
}

impl FromStr for ServerAddress {
    type Err = ContextError;

    fn from_str(text: &str) -> Result<Self, ContextError> {
        if text.starts_with("http://") {
            return Err(refused(text, "only https is spoken"));
        }
        let authority = text.strip_prefix("https://").unwrap_or(text);
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        if authority.contains(['/', '?', '#', '@']) {
            return Err(refused(text, "it has more than a host and a port"));
        }
        let uri: Uri = format!("https://{authority}/")
            .parse()
            .map_err(|_| refused(text, "it is not https://HOST:PORT"))?;
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(refused(text, "it has no host"));
        }
        let names_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
        let port = match uri.port_u16() {
            Some(0) => return Err(refused(text, "the port is 0")),
            Some(port) => port,
            None if names_port => return Err(refused(text, "the port is not a number")),
            None => DEFAULT_PORT,
        };
        let address = Self { host: host.to_owned(), port };
        address.tls_name()?;
        Ok(address)
    }
}

fn refused(address: &str, cause: &'static str) -> ContextError {
    ContextError::Server { address: crate::terminal::harmless(address), cause }
}

impl TryFrom<String> for ServerAddress {
    type Error = ContextError;

    fn try_from(text: String) -> Result<Self, ContextError> {
        text.parse()
    }
}

impl From<ServerAddress> for String {
    fn from(address: ServerAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_scheme_and_port() {
        for (text, shown) in [
            ("https://kms.example:1234", "https://kms.example:1234"),
            ("kms.example", "https://kms.example:8443"),
            ("127.0.0.1:9", "https://127.0.0.1:9"),
            ("https://[::1]:9/", "https://[::1]:9"),
            ("[::1]", "https://[::1]:8443"),
        ] {
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn plain_text_paths_credentials_and_nonsense_are_refused() {
        for text in [
            "http://a:1",
            "https://a:1/x",
            "https://u@a:1",
            "",
            "https://",
            "a:0",
            "a:65536",
            "a:b",
            "a b:1",
            "ftp://a",
            "a:",
            "_:1?x",
        ] {
            assert!(text.parse::<ServerAddress>().is_err(), "{text:?}");
        }
    }
}
