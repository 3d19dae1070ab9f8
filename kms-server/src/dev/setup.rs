//! The first start, and every later one: token, certificates, configuration, context of the CLI.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use data_encoding::BASE32_NOPAD;
use kms_core::clock::Clock;
use kms_core::secret::Pin;
use zeroize::Zeroizing;

use super::directory::{DevDirectory, DevError};
use super::exec::TOKENS;
use super::module::find_module;
use super::pki::{Authority, LeafName};
use crate::authz::{ActionKind, GrantConfig};
use crate::config::{Config, Engine, Flags, PostgresSection, SecretPlace};

/// The tenant in which the dev client may do everything.
pub const DEV_TENANT: &str = "dev";
/// Who the dev client is.
const CLIENT_ID: &str = "spiffe://holdfast.dev/dev/client";
/// Who the dev server is.
const SERVER_ID: &str = "spiffe://holdfast.dev/dev/server";
/// The context of `kms` that leads to the dev server, and the file that has it.
const DEV_CONTEXT: &str = "dev";
const CLI_FILE: &str = "cli.toml";
const TOKEN_LABEL: &str = "holdfast-dev";
const PIN_FILE: &str = "user-pin";
const SO_PIN_FILE: &str = "so-pin";
const SERIAL_FILE: &str = "token-serial";
/// Random bytes of a PIN: 160 bits, 32 characters.
const PIN_BYTES: usize = 20;

/// Makes what is missing in the directory and returns the configuration. The directory must be held.
pub fn prepare(
    directory: &DevDirectory,
    module: Option<PathBuf>,
    postgres: Option<PostgresSection>,
    flags: &Flags,
    clock: &dyn Clock,
) -> Result<Config, DevError> {
    let module = module.or_else(find_module).ok_or(DevError::NoModule)?;
    let serial = token(directory, &module)?;
    certificates(directory, clock)?;
    let mut config = Config::default();
    config.tls.certificate = directory.join("pki/server.pem");
    config.tls.private_key = directory.join("pki/server.key");
    config.tls.client_ca = directory.join("pki/ca.pem");
    config.admin.address.set_port(0);
    config.admin.tls = false;
    config.hsm.module = module;
    config.hsm.token_serial = Some(serial);
    config.hsm.pin = SecretPlace::File(directory.join(PIN_FILE));
    config.hsm.token_dir = Some(directory.join(TOKENS));
    // SoftHSM works under global locks: a second lane costs more than it gives.
    config.hsm.workers = 1;
    // And it has nothing better: a dev server is there to try things.
    config.import.allow_rsa_oaep_sha1 = true;
    config.store.path = directory.join("store.db");
    if let Some(section) = postgres {
        config.store.engine = Engine::Postgres;
        config.store.postgres = section;
    }
    config.audit.directory = directory.join("audit");
    config.authz.grants = vec![GrantConfig {
        principal: CLIENT_ID.to_owned(),
        tenant: DEV_TENANT.to_owned(),
        actions: ActionKind::ALL.to_vec(),
    }];
    flags.apply(&mut config);
    Ok(config)
}

fn token(directory: &DevDirectory, module: &Path) -> Result<String, DevError> {
    let path = directory.join(SERIAL_FILE);
    if let Ok(serial) = fs::read_to_string(&path) {
        return Ok(serial.trim().to_owned());
    }
    let (so_pin, user_pin) = (pin(directory, SO_PIN_FILE)?, pin(directory, PIN_FILE)?);
    let serial = kms_hsm::dev::init_token(module, TOKEN_LABEL, &so_pin, &user_pin)?;
    directory.put(SERIAL_FILE, format!("{serial}\n").as_bytes())?;
    Ok(serial)
}

/// Reads a PIN, or draws one: it is on disk before the token learns it.
fn pin(directory: &DevDirectory, name: &str) -> Result<Pin, DevError> {
    let path = directory.join(name);
    match fs::read_to_string(&path) {
        Ok(mut text) => {
            text.truncate(text.trim_end().len());
            return Ok(Pin::new(text));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(cause) => return Err(DevError::File { path, cause }),
    }
    let mut random = Zeroizing::new([0; PIN_BYTES]);
    aws_lc_rs::rand::fill(&mut *random).map_err(|_| DevError::Randomness)?;
    let text = Zeroizing::new(BASE32_NOPAD.encode(&*random));
    directory.put(name, text.as_bytes())?;
    Ok(Pin::new(text.to_string()))
}

/// Makes CA, server and client certificate in a side directory that is then put in its place whole.
fn certificates(directory: &DevDirectory, clock: &dyn Clock) -> Result<(), DevError> {
    let (place, side) = (directory.join("pki"), directory.join("pki.tmp"));
    if place.is_dir() {
        return Ok(());
    }
    let failed = |cause| DevError::File { path: side.clone(), cause };
    if side.exists() {
        fs::remove_dir_all(&side).map_err(failed)?;
    }
    fs::create_dir(&side).map_err(failed)?;
    let authority = Authority::create("holdfast dev CA", clock.now())?;
    let server = authority.issue(&LeafName::Server {
        spiffe_id: SERVER_ID.to_owned(),
        addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
    })?;
    let client = authority.issue(&LeafName::Client { spiffe_id: CLIENT_ID.to_owned() })?;
    for (name, credential) in
        [("ca", authority.credential()), ("server", &server), ("client", &client)]
    {
        let put = |kind: &str, text: &str| {
            directory.put(&format!("pki.tmp/{name}.{kind}"), text.as_bytes())
        };
        put("pem", &credential.certificate_pem)?;
        put("key", &credential.private_key_pem)?;
    }
    fs::rename(&side, &place).map_err(failed)?;
    fs::File::open(directory.path()).and_then(|parent| parent.sync_all()).map_err(failed)
}

/// Writes the context for `kms`, with the address that is listened on now.
pub fn write_cli_context(directory: &DevDirectory, listen: SocketAddr) -> Result<(), DevError> {
    let path = |name: &str| toml::Value::String(directory.join(name).display().to_string());
    let text = |text: String| toml::Value::String(text);
    let ours = [
        ("server", text(format!("https://{}", reachable(listen)))),
        ("ca", path("pki/ca.pem")),
        ("cert", path("pki/client.pem")),
        ("key", path("pki/client.key")),
        ("tenant", text(DEV_TENANT.to_owned())),
    ];
    let ours: toml::Table =
        ours.map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
    // Contexts that somebody added stay. What is no context file is written anew.
    let old = fs::read_to_string(directory.join(CLI_FILE)).unwrap_or_default();
    let mut file: toml::Table = old.parse().unwrap_or_default();
    let contexts = file.entry("contexts").or_insert_with(|| toml::Table::new().into());
    if let Some(contexts) = contexts.as_table_mut() {
        contexts.insert(DEV_CONTEXT.to_owned(), ours.into());
    }
    file.entry("current").or_insert_with(|| DEV_CONTEXT.into());
    let text =
        format!("# `kms-server dev` writes the context `{DEV_CONTEXT}` at every start.\n{file}");
    directory.put(CLI_FILE, text.as_bytes())
}

/// Returns where a client on this machine reaches a listener: nobody connects to "any address", and no certificate has
/// that name.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let loopback = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(loopback, listen.port())
}

/// Quotes a path for a shell, where it needs that.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Returns what dev mode says on standard output when it is ready.
pub fn banner(directory: &DevDirectory, listen: SocketAddr, admin: SocketAddr) -> String {
    let context = directory.join(CLI_FILE);
    format!(
        "\n*** DEV MODE *** keys, PIN and CA lie side by side in {}. Never for production.\n\n\
         gRPC (mTLS)  https://{listen}\nadmin        http://{admin}/readyz  /metrics\n\n\
         Try next:\n  export KMS_CONFIG={}\n  \
         kms key create demo --owner me --sensitivity low --usage demo --cryptoperiod 365d\n  \
         echo secret | kms wrap --key demo --in - --out -\n",
        directory.path().display(),
        quoted(&context),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_leads_to_an_address_that_the_certificate_names() {
        let reached = |listen: &str| reachable(listen.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:1"), "127.0.0.1:1");
        assert_eq!(reached("[::]:1"), "[::1]:1");
        assert_eq!(reached("192.0.2.7:1"), "192.0.2.7:1");
    }

    #[test]
    fn a_path_is_printed_as_a_shell_reads_it() {
        assert_eq!(quoted(Path::new("/tmp/a_b-1.2")), "/tmp/a_b-1.2");
        assert_eq!(quoted(Path::new("/tmp/a b")), "'/tmp/a b'");
        assert_eq!(quoted(Path::new("/tmp/it's $HOME")), r"'/tmp/it'\''s $HOME'");
    }

    #[test]
    fn a_start_keeps_the_contexts_that_somebody_added() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DevDirectory::open(&parent.path().join("dev")).unwrap();
        let read = || fs::read_to_string(directory.join(CLI_FILE)).unwrap();
        let parsed = || read().parse::<toml::Table>().unwrap();
        write_cli_context(&directory, "127.0.0.1:1".parse().unwrap()).unwrap();
        assert_eq!(parsed()["current"].as_str(), Some("dev"));
        let added = read().replace("current = \"dev\"", "current = \"other\"")
            + "\n[contexts.other]\nserver = \"https://other:1\"\n";
        fs::write(directory.join(CLI_FILE), added).unwrap();
        write_cli_context(&directory, "127.0.0.1:2".parse().unwrap()).unwrap();
        assert_eq!(parsed()["current"].as_str(), Some("other"));
        assert_eq!(parsed()["contexts"]["other"]["server"].as_str(), Some("https://other:1"));
        assert_eq!(parsed()["contexts"]["dev"]["server"].as_str(), Some("https://127.0.0.1:2"));
        fs::write(directory.join(CLI_FILE), "no TOML [").unwrap();
        write_cli_context(&directory, "127.0.0.1:3".parse().unwrap()).unwrap();
        assert_eq!(parsed()["contexts"]["dev"]["server"].as_str(), Some("https://127.0.0.1:3"));
    }
}
