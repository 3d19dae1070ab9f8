//! The keeper: the thread that owns the login, the session that owns the key objects, and all recovery.
//!
//! It logs in once and never calls C_Logout. Creation, loading and destruction of keys run here only, so that an object
//! is never destroyed under a job and C_FindObjects never runs beside C_GenerateKey (softhsm.md). It must never try a
//! PIN twice that was refused, and never create a root because one was not found.

mod connect;
mod import;
mod keys;
mod marks;
pub(crate) mod probe;
mod prober;
mod rescue;
mod residents;
mod rewrap;
mod roots;
mod settle;
mod strays;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use cryptoki::context::Pkcs11;
use cryptoki::object::ObjectHandle;
use cryptoki::session::{Session, SessionState};
use cryptoki::slot::Slot;
use kms_core::key::CkaId;
use kms_core::root::RootPin;
use kms_core::secret::Pin;

use crate::error::HsmError;
use crate::pkcs11::ckr::Failure;
use crate::pkcs11::gate::{Live, Root};
use crate::pkcs11::iv::IvPool;
use crate::pkcs11::job::{Answer, KeeperMessage, KeeperWork, Reply};
use crate::pkcs11::shared::Shared;

/// See the module's description.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    context: Pkcs11,
    /// Kept for re-login; given up when it is refused.
    pin: Option<Pin>,
    session: Option<Session>,
    initialized: bool,
    module_epoch: u64,
    epoch: u64,
    login: u64,
    slot: Option<Slot>,
    pins: Vec<RootPin>,
    residents: HashMap<CkaId, Vec<ObjectHandle>>,
    /// Handles of the session objects behind loaded keys: those that a listing of the token leaves out.
    session_objects: HashSet<u64>,
    /// Whether the token has more objects than were looked at: then what is not in the index may still be there.
    index_is_cut: bool,
    ivs: IvPool,
    probe_at: Option<Instant>,
    pause: Duration,
    last_soft: Option<Instant>,
    /// How many workers were started, but for those that replaced another.
    staffed: usize,
    /// When the device came up last.
    up_since: Option<Instant>,
}

impl Keeper {
    pub(crate) fn new(shared: Arc<Shared>, context: Pkcs11, pin: Pin) -> Self {
        let pause = shared.config.budgets.probe_first;
        Self {
            shared,
            context,
            pin: Some(pin),
            session: None,
            initialized: false,
            module_epoch: 0,
            epoch: 0,
            login: 0,
            slot: None,
            pins: Vec::new(),
            residents: HashMap::new(),
            session_objects: HashSet::new(),
            index_is_cut: false,
            ivs: IvPool::default(),
            probe_at: None,
            pause,
            last_soft: None,
            staffed: 0,
            up_since: None,
        }
    }

    /// Connects, says that it tried, and serves until it is told to close.
    pub(crate) fn run(mut self, tried: &Sender<()>) {
        self.first_connect();
        // The one who starts us may have given up waiting.
        let _ = tried.send(());
        loop {
            if self.probe_at.is_some_and(|at| self.shared.now() >= at) {
                self.probe();
            }
            let until_probe =
                self.probe_at.map(|at| at.saturating_duration_since(self.shared.now()));
            match self.shared.keeper.receive(until_probe) {
                Some(KeeperMessage::Job { work, reply, deadline }) => {
                    self.shared.keeper_waiting.fetch_sub(1, Ordering::AcqRel);
                    self.serve(&work, reply, deadline);
                }
                Some(KeeperMessage::Rescue { job, cause, login }) => {
                    self.shared.keeper_waiting.fetch_sub(1, Ordering::AcqRel);
                    self.rescue(job, cause, login);
                }
                Some(KeeperMessage::Release { epoch, object }) => {
                    self.seated(|keeper| keeper.release(epoch, object));
                }
                Some(KeeperMessage::Trouble) => self.probe_soon(),
                Some(KeeperMessage::Close(done)) => {
                    self.seated(Self::disconnect_for_good);
                    self.shared.keeper_ended.store(true, Ordering::Release);
                    self.shared.refuse_waiting_for_keeper(|_| false);
                    // The last who holds the module unloads it. Whoever hears of the end may end the process, and two
                    // threads that run the module's destructors at a time crash.
                    drop(self);
                    let _ = done.send(());
                    return;
                }
                None => {}
            }
        }
    }

    fn serve(&mut self, work: &KeeperWork, reply: Reply, deadline: Instant) {
        let now = self.shared.now();
        if now >= deadline {
            return reply.fail(HsmError::QueueDeadline);
        }
        if let Err(error) = self.shared.health.check_taken(|| now) {
            return reply.fail(error);
        }
        self.shared.keeper_seat.begin(Some(reply), deadline, now);
        let own = self.own_resident(work);
        let mut result = self.perform(work);
        if let Err(failure) = &result
            && self.mend(failure)
        {
            // What the first attempt left behind must not be in the way of the second.
            let cleared = own.map_or(Ok(()), |id| self.destroy_resident(id));
            result = cleared.and_then(|()| self.perform(work));
        }
        let result = result.map_err(|failure| {
            let failure = self.settle(work, failure);
            self.give_up(failure)
        });
        if let Some(reply) = self.shared.keeper_seat.finish() {
            reply.send(result, None);
        }
    }

    fn perform(&mut self, work: &KeeperWork) -> Result<Answer, Failure> {
        match work {
            KeeperWork::CreateRoot(generation) => self.create_root(*generation).map(Answer::Pin),
            KeeperWork::OpenRoots(pins) => self.open_roots(pins).map(|()| Answer::Done),
            KeeperWork::Generate(spec) => {
                self.generate(spec).map(|key| Answer::Generated(Box::new(key)))
            }
            KeeperWork::Load(source) => self.load(source).map(Answer::Key),
            KeeperWork::Rewrap { sources, to } => {
                self.rewrap_keys(sources, *to).map(Answer::Rewrapped)
            }
            KeeperWork::Import(import) => {
                self.import(import).map(|key| Answer::Generated(Box::new(key)))
            }
            KeeperWork::DestroyImportKey(id) => self.destroy_import_key(*id).map(|()| Answer::Done),
            KeeperWork::DestroyResident(id) => self.destroy_resident(*id).map(|()| Answer::Done),
            KeeperWork::ListTokenKeys => self.list_token_keys().map(Answer::TokenKeys),
            KeeperWork::PutMark { mark, replaced } => {
                self.put_mark(mark, replaced).map(|()| Answer::Done)
            }
            KeeperWork::ListMarks => self.list_marks().map(Answer::Marks),
        }
    }

    /// Does what no one waits for, watched all the same: whatever calls the module can hang in it.
    fn seated<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let now = self.shared.now();
        self.shared.keeper_seat.begin(None, now, now);
        let result = work(self);
        self.shared.keeper_seat.finish();
        result
    }

    /// Destroys a session object whose last user is gone.
    fn release(&mut self, epoch: u64, object: ObjectHandle) {
        if epoch != self.epoch {
            return;
        }
        let Some(session) = &self.session else { return };
        match session.destroy_object(object) {
            Ok(()) => drop(self.session_objects.remove(&object.handle())),
            Err(error) => tracing::warn!(%error, "destroying a session object"),
        }
    }

    /// Turns a failure that could not be mended into the answer, and opens the breaker or latches where it must.
    fn give_up(&mut self, failure: Failure) -> HsmError {
        match failure {
            Failure::Answer(error) => error,
            Failure::Latch(reason) => {
                self.pin = None;
                self.shared.health.latch(&reason);
                HsmError::Latched { reason }
            }
            other => {
                let detail = other.detail();
                if self.shared.health.trip(&detail) {
                    self.probe_soon();
                }
                self.shared.unavailable(&detail)
            }
        }
    }

    fn session(&self) -> Result<&Session, Failure> {
        self.session.as_ref().ok_or_else(|| Failure::Device("not connected".into()))
    }

    fn live(&self) -> Result<Arc<Live>, Failure> {
        self.shared.gate.live().ok_or_else(|| Failure::Device("not connected".into()))
    }

    fn root(&self, generation: kms_core::id::RootGeneration) -> Result<Root, Failure> {
        self.live()?.roots.get(&generation).copied().ok_or_else(|| {
            let detail = format!("root generation {generation} is not open");
            Failure::Answer(self.shared.unavailable(&detail))
        })
    }

    /// Tells "the object is not there" from "nothing is there", before anything latches or is answered missing.
    ///
    /// SoftHSM finds 0 objects, with CKR_OK, when its directory is gone, and when the login is: private objects do not
    /// show without it. [`Failure::Module`] and [`Failure::Login`] are what mends the two.
    fn token_is_there(&self) -> Result<(), Failure> {
        let slot = self.slot.ok_or_else(|| Failure::Device("not connected".into()))?;
        if let Err(error) = self.context.get_token_info(slot) {
            return Err(Failure::Module(crate::pkcs11::ckr::describe(&error)));
        }
        match self.session()?.get_session_info()?.session_state() {
            SessionState::RwUser => Ok(()),
            state => Err(Failure::Login(format!("the keeper's session is {state:?}"))),
        }
    }
}
