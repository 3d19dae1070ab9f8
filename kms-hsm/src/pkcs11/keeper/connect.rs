//! Connecting: C_Initialize, token, login, roots; and the way back.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags};
use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::RawAuthPin;

use super::Keeper;
use crate::error::LatchReason;
use crate::pkcs11::ckr::{Class, Failure, classify};
use crate::pkcs11::config::TokenSelector;
use crate::pkcs11::fatal::FatalReason;
use crate::pkcs11::gate::Live;
use crate::pkcs11::{mechanism, token_file};

/// What SoftHSM calls itself in C_GetInfo, in small letters.
const SOFTHSM: &str = "softhsm";

/// What C_Login found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Login {
    /// No login; there is one now.
    Done,
    /// CKR_USER_ALREADY_LOGGED_IN.
    WasThere,
}

impl Keeper {
    /// Initialises the module anew and puts everything in place: login, roots, index, the workers' sessions.
    ///
    /// Everything of the epoch before is void afterwards; nobody is inside while this runs.
    ///
    /// # Errors
    /// A latch, or [`Failure::Device`]: nothing is in place then, so no failure may pass for one of a single job.
    pub(super) fn connect(&mut self) -> Result<(), Failure> {
        self.put_in_place().map_err(Failure::of_connection)
    }

    fn put_in_place(&mut self) -> Result<(), Failure> {
        let shared = Arc::clone(&self.shared);
        let Some(exclusive) = shared.gate.exclusive(shared.config.budgets.drain) else {
            (shared.config.on_fatal)(FatalReason::FinalizeBlocked);
            return Err(Failure::Device("a call hangs in the module".into()));
        };
        exclusive.set(None);
        self.finalize();
        if self.module_epoch > 0 {
            shared.reconnects.fetch_add(1, Ordering::AcqRel);
        }
        self.module_epoch += 1;
        self.epoch += 1;
        self.login += 1;
        self.with_token_files(token_file::guard)?;
        match self.context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(error.into()),
        }
        self.initialized = true;
        self.files_are_known()?;
        // The serial is compared here: no other token is shown the PIN.
        let (slot, workers) = self.find_token()?;
        self.slot = Some(slot);
        mechanism::check(&self.context, slot)?;
        let session = self.context.open_rw_session_no_drop(slot)?;
        self.log_in(&session)?;
        self.session = Some(session);
        self.with_token_files(token_file::sync)?;
        let mut sessions = Vec::with_capacity(workers);
        for _ in 0..workers {
            sessions.push(self.context.open_rw_session_no_drop(slot)?);
        }
        self.index_residents()?;
        let live = Live {
            module_epoch: self.module_epoch,
            epoch: self.epoch,
            login: self.login,
            context: self.context.clone(),
            slot,
            roots: self.find_roots(&self.pins)?,
            sessions: Arc::new(Mutex::new(sessions)),
        };
        // Invariant: what goes live is whole; what fails before leaves nothing live.
        self.staff(workers)?;
        exclusive.set(Some(Arc::new(live)));
        Ok(())
    }

    /// Starts workers until there have been so many. Those that are lost later are replaced one by one (`watchdog`).
    fn staff(&mut self, workers: usize) -> Result<(), Failure> {
        while self.staffed < workers {
            self.shared.spawn_worker().map_err(|error| Failure::Device(error.to_string()))?;
            self.staffed += 1;
        }
        Ok(())
    }

    /// Logs in again and resolves every object again, as a lost login takes the objects with it.
    ///
    /// # Errors
    /// A latch, or [`Failure::Device`], for the reason of [`Keeper::connect`].
    pub(super) fn log_in_again(&mut self) -> Result<(), Failure> {
        self.renew_login().map_err(Failure::of_connection)
    }

    fn renew_login(&mut self) -> Result<(), Failure> {
        let live = self.live()?;
        let found = self.log_in(self.session()?)?;
        self.login += 1;
        // Logged in already, and the roots answer: nothing was lost, the module said so of one call.
        if found == Login::WasThere && self.verify_open_roots().is_ok() {
            self.shared.gate.swap(Arc::new(Live { login: self.login, ..live.renewed() }));
            return Ok(());
        }
        self.index_residents()?;
        let roots = self.find_roots(&self.pins)?;
        self.session_objects.clear();
        // One swap, when all is there: a worker never sees the new epoch without its roots.
        self.epoch += 1;
        let renewed = Live { epoch: self.epoch, login: self.login, roots, ..live.renewed() };
        self.shared.gate.swap(Arc::new(renewed));
        Ok(())
    }

    /// Refuses SoftHSM without its directory: no key could be made durable. Other modules sync by themselves.
    fn files_are_known(&self) -> Result<(), Failure> {
        if self.shared.config.token_dir.is_some() {
            return Ok(());
        }
        let info = self.context.get_library_info()?;
        let module = format!("{}, {}", info.manufacturer_id(), info.library_description());
        if module.to_lowercase().contains(SOFTHSM) {
            return Err(Failure::Latch(LatchReason::TokenDirUnknown { module }));
        }
        Ok(())
    }

    /// Does something with the token's files, where they are known.
    fn with_token_files(&self, act: fn(&Path) -> io::Result<()>) -> Result<(), Failure> {
        let Some(directory) = &self.shared.config.token_dir else { return Ok(()) };
        act(directory).map_err(|error| Failure::Device(format!("the token directory: {error}")))
    }

    /// One login a connect; a refusal ends the use of this PIN.
    fn log_in(&self, session: &Session) -> Result<Login, Failure> {
        let Some(pin) = &self.pin else { return Err(Failure::Latch(LatchReason::PinRefused)) };
        let pin = RawAuthPin::new(Box::new(pin.expose().as_bytes().to_vec()));
        match session.login_with_raw(UserType::User, &pin) {
            Ok(()) => Ok(Login::Done),
            Err(error) if classify(&error) == Class::LoggedIn => Ok(Login::WasThere),
            Err(error) => Err(error.into()),
        }
    }

    /// Finds the configured token and compares its serial with the pinned one. Returns how many workers it bears, too.
    fn find_token(&self) -> Result<(Slot, usize), Failure> {
        let selector = &self.shared.config.token;
        let mut found = None;
        for slot in self.context.get_slots_with_token()? {
            let token = self.context.get_token_info(slot)?;
            let matches = match selector {
                TokenSelector::Serial(serial) => token.serial_number() == serial,
                TokenSelector::Label(label) => token.label() == label,
            };
            if !matches || !token.token_initialized() {
                continue;
            }
            if !token.user_pin_initialized() {
                return Err(Failure::Device("the token has no user PIN yet".into()));
            }
            if found.is_some() {
                return Err(Failure::Device("two tokens have that label; use the serial".into()));
            }
            let workers = self.shared.config.workers_for(token.max_session_count());
            found = Some((slot, token.serial_number().trim().to_owned(), workers));
        }
        let Some((slot, serial, workers)) = found else {
            return Err(Failure::Device(format!("no token with {selector} is present")));
        };
        self.check_serial(&serial)?;
        *self.shared.serial.lock().unwrap_or_else(PoisonError::into_inner) = serial;
        Ok((slot, workers))
    }

    fn check_serial(&self, found: &str) -> Result<(), Failure> {
        let pinned = self.pins.iter().map(|pin| &pin.token_serial);
        match pinned.chain(&self.shared.config.pinned_serials).find(|pinned| *pinned != found) {
            None => Ok(()),
            Some(pinned) => Err(Failure::Latch(LatchReason::OtherToken {
                found: found.to_owned(),
                pinned: pinned.clone(),
            })),
        }
    }

    /// Ends the use of the module; errors do not matter, as everything of it is void afterwards.
    ///
    /// Invariant: the caller holds the gate alone.
    fn finalize(&mut self) {
        // Not closed one by one: C_Finalize does it, and the numbers may be live again after it.
        self.session = None;
        self.slot = None;
        self.residents.clear();
        self.session_objects.clear();
        if self.initialized
            && let Err(error) = self.context.clone().finalize()
        {
            tracing::warn!(%error, "C_Finalize");
        }
        self.initialized = false;
    }

    /// Closes for good, unless a call hangs in the module: then the end of the process does it.
    pub(super) fn disconnect_for_good(&mut self) {
        let shared = Arc::clone(&self.shared);
        self.pin = None;
        let Some(exclusive) = shared.gate.exclusive(shared.config.budgets.drain) else {
            return tracing::error!("closing without C_Finalize: a call hangs in the module");
        };
        exclusive.set(None);
        self.finalize();
    }
}
