//! The echo's process: the server's own accept loop around [`EchoService`].

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use kms_core::clock::SystemClock;
use kms_server::transport::{
    ConnectionLimits, Protocols, Security, ServeOptions, Shutdown, TlsFiles, TlsStore, serve,
};
use tokio::net::TcpListener;

use crate::echo::EchoService;
use crate::error::{Error, io};

/// Starts the line that says where the echo listens.
pub const LISTENING: &str = "listening ";

/// Serves until the process is killed, with the certificates in `directory`; says on stdout where.
pub fn run(directory: &Path, threads: usize) -> Result<(), Error> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    runtime.map_err(io("start a runtime"))?.block_on(async {
        let files = TlsFiles {
            certificate: directory.join("server.pem"),
            private_key: directory.join("server.key"),
            client_ca: directory.join("ca.pem"),
            crls: Vec::new(),
        };
        let store = TlsStore::load(files, Protocols::Http2)
            .map_err(|error| Error::Child { what: "the echo", detail: error.to_string() })?;
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(io("listen"))?;
        let address = listener.local_addr().map_err(io("listen"))?;
        writeln!(std::io::stdout(), "{LISTENING}{address}").map_err(io("write to stdout"))?;
        let mut options = ServeOptions::new(ConnectionLimits::default(), Arc::new(SystemClock));
        // The floor is what tonic does by itself.
        options.write_together = false;
        let (_keep, shutdown) = Shutdown::channel();
        let security = Security::Tls(Arc::new(store));
        let routes = tonic::service::Routes::new(EchoService).prepare();
        let _ = serve(listener, security, routes, options, shutdown).await;
        Ok(())
    })
}
