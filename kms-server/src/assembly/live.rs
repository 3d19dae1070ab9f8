//! Between start and stop: listening for signals, and telling when all is ready.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use kms_core::clock::{Clock as _, SystemClock};

use super::error::StartError;
use super::open::Core;
use super::parts;
use super::run::{Ended, Mode, warn_of_dates};
use super::signals::{Signals, Wish};
use super::sockets::{address, bind, listen};
use super::start::Listeners;
use crate::config::Config;
use crate::transport::{Protocols, TlsFiles, TlsStore, tls_check};

impl Core {
    /// Starts, serves until told to stop, and stops.
    pub(super) async fn live(
        self,
        config: &Config,
        mode: &Mode,
        started: Instant,
        mut signals: Signals,
    ) -> Result<Ended, StartError> {
        let public_tls = Arc::new(TlsStore::load(config.tls.files(), Protocols::Http2)?);
        let admin_tls = if config.admin.tls {
            Some(Arc::new(TlsStore::load(config.tls.files(), Protocols::Http1AndHttp2)?))
        } else {
            None
        };
        // Bound early, so that a wrong address is told at once; it listens when there is somebody to answer.
        let public_socket = bind(config.listen.address)?;
        let admin_listener = listen(bind(config.admin.address)?)?;
        let addresses =
            (address(public_socket.local_addr())?, address(admin_listener.local_addr())?);
        // Said before the token is there: this is where to ask why nothing is served yet.
        tracing::info!(admin = %addresses.1, "the admin listener is open");
        let mut reloads = vec![Arc::clone(&public_tls)];
        reloads.extend(admin_tls.clone());

        let listeners =
            Listeners { public: public_socket, admin: admin_listener, public_tls, admin_tls };
        let starting = self.start(config, mode, listeners);
        tokio::pin!(starting);
        let mut running = loop {
            tokio::select! {
                running = &mut starting => break running?,
                wish = signals.next() => match wish {
                    Wish::Stop => {
                        tracing::info!("stopping: the start is not over");
                        return Ok(Ended::Orderly);
                    }
                    Wish::Reload => reload(&reloads, &config.tls.files()),
                },
            }
        };
        let (mut said, mut told) = (false, false);
        loop {
            tokio::select! {
                wish = signals.next() => match wish {
                    Wish::Stop => break,
                    Wish::Reload => reload(&reloads, &config.tls.files()),
                },
                Ok(()) = running.rounds.changed(), if !told => {
                    told = *running.rounds.borrow_and_update() == Some(true);
                    let (listen, admin) = addresses;
                    if told {
                        self.tell_ready(mode, addresses, started)?;
                        tracing::info!(%listen, %admin, "serving");
                    } else if !std::mem::replace(&mut said, true) {
                        tracing::warn!(%listen, %admin, "listening, but not ready: calls are refused");
                    }
                }
            }
        }
        tokio::select! {
            () = self.stop(config, running) => Ok(Ended::Orderly),
            () = signals.stop() => {
                tracing::warn!("told to stop again: ending at once");
                Ok(Ended::AtOnce)
            }
        }
    }

    /// Tells clients and people where, and that all is ready.
    fn tell_ready(
        &self,
        mode: &Mode,
        addresses: (SocketAddr, SocketAddr),
        started: Instant,
    ) -> Result<(), StartError> {
        let told = (mode.on_ready)(addresses.0, addresses.1);
        told.map_err(StartError::system("write what clients need"))?;
        let Some(file) = &mode.ready_file else { return Ok(()) };
        let ready = parts::since(started, self.clock.as_ref());
        file.write(self.clock.now(), addresses.0, addresses.1, self.hsm.login, ready)
            .map_err(StartError::system("write the ready file"))
    }
}

fn reload(stores: &[Arc<TlsStore>], files: &TlsFiles) {
    for store in stores {
        match store.reload() {
            Ok(()) => tracing::info!(epoch = store.epoch(), "certificates reloaded"),
            Err(error) => tracing::error!(%error, "certificates not reloaded; the old ones stay"),
        }
    }
    for (key, error) in tls_check::dates(files, SystemClock.now()) {
        warn_of_dates(key, &error);
    }
}
