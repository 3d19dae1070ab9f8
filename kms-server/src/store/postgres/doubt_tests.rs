//! What becomes of methods whose connection is lost: before the commit, at it with and without its effect, and while the
//! server has yet to read it. A proxy between store and server cuts the connection.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kms_core::id::Revision;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::PostgresStore;
use super::session::Isolation;
use super::tests::{Fresh, fresh};
use crate::store::suite::{applied, closing, intent, listed_intents, new_key, sealed};
use crate::store::{Store as _, StoreError};

const COMMIT: &[u8] = b"COMMIT\0";
const BEGIN: &[u8] = b"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;";

/// What is done to the connection on which the text is sent.
enum Cut {
    /// It is cut, and the server never sees the text.
    Before,
    /// The server does it, and its answer is lost.
    After,
    /// The store's side is cut, and the server sees the text when it is told.
    Late(oneshot::Receiver<()>),
}

/// What the next cut is, and at which text.
type Armed = Arc<Mutex<Option<(&'static [u8], Cut)>>>;

/// A socket between store and server. It cuts one connection each time it is armed.
struct Proxy {
    directory: tempfile::TempDir,
    armed: Armed,
}

impl Proxy {
    fn start(fresh: &Fresh) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = format!(".s.PGSQL.{}", fresh.database.port);
        let server = fresh.database.socket_directory.join(&socket);
        let listener = UnixListener::bind(directory.path().join(socket)).unwrap();
        let armed = Armed::default();
        tokio::spawn({
            let armed = Arc::clone(&armed);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(pass(client, server.clone(), Arc::clone(&armed)));
                }
            }
        });
        Self { directory, armed }
    }

    fn arm(&self, text: &'static [u8], cut: Cut) {
        *self.armed.lock().unwrap() = Some((text, cut));
    }
}

async fn pass(mut client: UnixStream, server: PathBuf, armed: Armed) {
    let mut server = UnixStream::connect(server).await.unwrap();
    let (mut sent, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        tokio::select! {
            read = client.read(&mut sent) => {
                let Ok(read @ 1..) = read else { return };
                let bytes = &sent[..read];
                let cut = armed.lock().unwrap().take_if(|(text, _)| bytes.windows(text.len()).any(|found| found == *text));
                match cut {
                    None => server.write_all(bytes).await.unwrap(),
                    Some((_, Cut::Before)) => return,
                    Some((_, Cut::After)) => {
                        server.write_all(bytes).await.unwrap();
                        let _ = server.read(&mut answered).await;
                        return;
                    }
                    Some((_, Cut::Late(told))) => {
                        drop(client);
                        let _ = told.await;
                        server.write_all(bytes).await.unwrap();
                        let _ = server.read(&mut answered).await;
                        return;
                    }
                }
            }
            read = server.read(&mut answered) => {
                let Ok(read @ 1..) = read else { return };
                if client.write_all(&answered[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A store behind a proxy, with the intent 1 open.
async fn opened() -> (PostgresStore, Proxy, Fresh) {
    let mut fresh = fresh();
    let proxy = Proxy::start(&fresh);
    fresh.settings.host = proxy.directory.path().to_str().unwrap().to_owned();
    let store = fresh.open().await.unwrap();
    store.open_intent(sealed(intent(1))).await.unwrap();
    (store, proxy, fresh)
}

#[track_caller]
fn detail<T: std::fmt::Debug>(refused: Result<T, StoreError>) -> String {
    match refused {
        Err(StoreError::Unavailable { detail }) => detail,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_connection_lost_before_the_commit_is_replaced_unseen() {
    let (store, proxy, _fresh) = opened().await;
    proxy.arm(BEGIN, Cut::Before);
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
}

#[tokio::test]
async fn a_mutation_whose_commit_was_lost_on_the_way_has_not_happened() {
    let (store, proxy, _fresh) = opened().await;
    proxy.arm(COMMIT, Cut::Before);
    let refused = detail(store.create_key(new_key(1), closing(1, 0)).await);
    assert!(refused.contains("nothing was changed"), "{refused}");
    assert_eq!(store.intents().await, Ok(listed_intents(vec![intent(1)])));
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
}

#[tokio::test]
async fn a_mutation_whose_answer_was_lost_has_happened() {
    let (store, proxy, _fresh) = opened().await;
    proxy.arm(COMMIT, Cut::After);
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    assert_eq!(store.intents().await, Ok(listed_intents(vec![applied(1, 0)])));
}

#[tokio::test]
async fn a_commit_that_the_server_has_yet_to_read_is_waited_for() {
    let (store, proxy, fresh) = opened().await;
    let (tell, told) = oneshot::channel();
    proxy.arm(COMMIT, Cut::Late(told));
    let (created, ()) = tokio::join!(store.create_key(new_key(1), closing(1, 0)), async {
        fresh.until_one_waits().await;
        tell.send(()).unwrap();
    });
    assert_eq!(created, Ok(()));
}

#[tokio::test]
async fn intents_are_listed_as_a_running_mutation_leaves_them() {
    let (store, _proxy, fresh) = opened().await;
    let running = fresh.session().await;
    running.begin(Isolation::Write).await.unwrap();
    super::write_closing::apply(&running, &closing(1, 0), 1).await.unwrap();
    let (listed, ()) = tokio::join!(store.intents(), async {
        fresh.until_one_waits().await;
        running.commit().await.unwrap();
    });
    assert_eq!(listed, Ok(listed_intents(vec![applied(1, 0)])));
}

#[tokio::test]
async fn an_intent_whose_answer_was_lost_is_in_doubt_and_listed() {
    let (store, proxy, _fresh) = opened().await;
    proxy.arm(COMMIT, Cut::After);
    let refused = detail(store.open_intent(sealed(intent(2))).await);
    assert!(refused.contains("may have happened"), "{refused}");
    assert_eq!(store.intents().await, Ok(listed_intents(vec![intent(1), intent(2)])));
}

#[tokio::test]
async fn an_intent_is_closed_whatever_becomes_of_the_first_answer() {
    for cut in [Cut::Before, Cut::After] {
        let (store, proxy, _fresh) = opened().await;
        proxy.arm(COMMIT, cut);
        store.close_intent(intent(1).id).await.unwrap();
        assert_eq!(store.intents().await, Ok(listed_intents(vec![])));
    }
}

#[tokio::test]
async fn a_lease_whose_answer_was_lost_is_in_doubt_and_found_when_it_is_read() {
    let (store, proxy, _fresh) = opened().await;
    store.create_key(new_key(1), closing(1, 0)).await.unwrap();
    let mut counter = new_key(1).counter;
    let expected = counter.row.revision;
    (counter.row.leased, counter.row.revision) = (100, Revision::new(2));
    proxy.arm(COMMIT, Cut::After);
    let refused = detail(store.update_counters(vec![(expected, counter.clone())]).await);
    assert!(refused.contains("may have happened"), "{refused}");
    let stored = store.counter(counter.row.key_uid, counter.row.version).await;
    assert_eq!(stored, Ok(Some(counter)));
}
