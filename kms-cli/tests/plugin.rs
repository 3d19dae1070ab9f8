//! The plugin's two state machines, in process: what they wrap, unwrap, pass over and refuse.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "test helpers")]

mod backup_support;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use age_core::format::{FileKey, Stanza};
use age_core::plugin;
use age_core::secrecy::{ExposeSecret as _, SecretString};
use age_plugin::Callbacks;
use age_plugin::identity::{Error as IdentityError, IdentityPluginV1 as _};
use age_plugin::recipient::{Error as RecipientError, RecipientPluginV1 as _};
use backup_support::{KEY, MemoryKms, OTHER_KEY, refusal};
use kms_cli::backup::plugin::{
    Connect, IdentityPlugin, MAX_ADDRESSES, MAX_STANZAS_TRIED, RecipientPlugin,
};
use kms_cli::backup::{Address, FileKeyService};

/// Nobody is there to answer.
struct Nobody;

impl<E> Callbacks<E> for Nobody {
    fn message(&mut self, _: &str) -> plugin::Result<()> {
        panic!("the plugin has nothing to say")
    }

    fn confirm(&mut self, _: &str, _: &str, _: Option<&str>) -> plugin::Result<bool> {
        panic!("the plugin has nothing to ask")
    }

    fn request_public(&mut self, _: &str) -> plugin::Result<String> {
        panic!("the plugin has nothing to ask")
    }

    fn request_secret(&mut self, _: &str) -> plugin::Result<SecretString> {
        panic!("the plugin has nothing to ask")
    }

    fn error(&mut self, _: E) -> plugin::Result<()> {
        panic!("errors are returned")
    }
}

/// Reads what it is told.
#[derive(Default)]
struct Reader(Rc<RefCell<Vec<String>>>);

impl<E> Callbacks<E> for Reader {
    fn message(&mut self, message: &str) -> plugin::Result<()> {
        self.0.borrow_mut().push(message.to_owned());
        Ok(Ok(()))
    }

    fn confirm(&mut self, _: &str, _: &str, _: Option<&str>) -> plugin::Result<bool> {
        panic!("the plugin has nothing to ask")
    }

    fn request_public(&mut self, _: &str) -> plugin::Result<String> {
        panic!("the plugin has nothing to ask")
    }

    fn request_secret(&mut self, _: &str) -> plugin::Result<SecretString> {
        panic!("the plugin has nothing to ask")
    }

    fn error(&mut self, _: E) -> plugin::Result<()> {
        panic!("errors are returned")
    }
}

fn connect_to(kms: &Arc<MemoryKms>) -> Box<Connect> {
    let kms: Arc<dyn FileKeyService> = kms.clone();
    Box::new(move |_| Ok(Arc::clone(&kms)))
}

fn address(key: &str) -> Vec<u8> {
    Address::new(key.parse().unwrap(), None).unwrap().to_bytes()
}

fn file_key(byte: u8) -> FileKey {
    FileKey::new(Box::new([byte; 16]))
}

fn wrap(kms: &Arc<MemoryKms>, keys: &[&str], file_keys: Vec<FileKey>) -> Vec<Vec<Stanza>> {
    let mut plugin = RecipientPlugin::new(connect_to(kms));
    for (index, key) in keys.iter().enumerate() {
        assert!(plugin.add_recipient(index, "kms", &address(key)).is_ok());
    }
    let Ok(stanzas) = plugin.wrap_file_keys(file_keys, Nobody).unwrap() else {
        panic!("wrapping is refused")
    };
    stanzas
}

fn identities(connect: Box<Connect>, keys: &[&str]) -> IdentityPlugin {
    let mut plugin = IdentityPlugin::new(connect);
    for (index, key) in keys.iter().enumerate() {
        assert!(plugin.add_identity(index, "kms", &address(key)).is_ok());
    }
    plugin
}

fn message(error: &IdentityError) -> &str {
    match error {
        IdentityError::Identity { message, .. }
        | IdentityError::Internal { message }
        | IdentityError::Stanza { message, .. } => message,
    }
}

#[test]
fn a_file_key_for_each_file_and_recipient_is_wrapped_and_unwrapped() {
    let kms = Arc::new(MemoryKms::at(4));
    let files = wrap(&kms, &[KEY, OTHER_KEY], vec![file_key(1), file_key(2)]);
    assert!(files.iter().all(|stanzas| stanzas.len() == 2));
    for key in [KEY, OTHER_KEY] {
        let copy = |stanza: &Stanza| Stanza {
            tag: stanza.tag.clone(),
            args: stanza.args.clone(),
            body: stanza.body.clone(),
        };
        let files: Vec<Vec<_>> = files.iter().map(|file| file.iter().map(copy).collect()).collect();
        let mut opened =
            identities(connect_to(&kms), &[key]).unwrap_file_keys(files, Nobody).unwrap();
        for (index, byte) in [(0, 1), (1, 2)] {
            let Some(Ok(file_key)) = opened.remove(&index) else { panic!("file {index}") };
            assert_eq!(*file_key.expose_secret(), [byte; 16]);
        }
    }
}

#[test]
fn an_identity_can_stand_for_its_recipient() {
    let kms = Arc::new(MemoryKms::at(1));
    let mut plugin = RecipientPlugin::new(connect_to(&kms));
    assert!(plugin.add_identity(0, "kms", &address(KEY)).is_ok());
    let wrapped = plugin.wrap_file_keys(vec![file_key(1)], Nobody).unwrap();
    assert!(matches!(wrapped, Ok(files) if files[0].len() == 1));
    assert!(plugin.labels().is_empty());
}

#[test]
fn foreign_stanzas_and_other_keys_are_passed_over_without_an_error() {
    let kms = Arc::new(MemoryKms::at(1));
    let foreign = Stanza { tag: "X25519".into(), args: vec!["x".into()], body: vec![1; 32] };
    let mut files = wrap(&kms, &[OTHER_KEY], vec![file_key(1)]);
    files.push(vec![foreign]);
    kms.take_calls();
    let reader = Reader::default();
    let told = Rc::clone(&reader.0);
    let opened = identities(connect_to(&kms), &[KEY]).unwrap_file_keys(files, reader).unwrap();
    assert!(opened.is_empty());
    let expected = format!("sealed with `{OTHER_KEY}`; no identity given is for that key");
    assert_eq!(*told.borrow(), [expected]);
    assert_eq!(kms.take_calls(), ["describe"]);
}

#[test]
fn a_damaged_stanza_of_ours_is_named() {
    let kms = Arc::new(MemoryKms::at(1));
    let mut files = wrap(&kms, &[KEY], vec![file_key(1)]);
    files[0][0].args[0] = "2".into();
    let mut opened = identities(connect_to(&kms), &[KEY]).unwrap_file_keys(files, Nobody).unwrap();
    let Some(Err(errors)) = opened.remove(&0) else { panic!("no error") };
    let at_stanza =
        matches!(errors[0], IdentityError::Stanza { file_index: 0, stanza_index: 0, .. });
    assert!(at_stanza, "{}", message(&errors[0]));
}

#[test]
fn a_good_stanza_counts_more_than_a_damaged_one() {
    let kms = Arc::new(MemoryKms::at(1));
    let mut files = wrap(&kms, &[KEY, KEY], vec![file_key(1)]);
    files[0][0].body[40] ^= 1;
    let mut opened = identities(connect_to(&kms), &[KEY]).unwrap_file_keys(files, Nobody).unwrap();
    assert!(matches!(opened.remove(&0), Some(Ok(_))));
}

#[test]
fn what_the_server_refuses_is_told_with_the_key_and_without_secrets() {
    let kms = Arc::new(MemoryKms { fail_on: Some("unwrap"), ..MemoryKms::at(1) });
    let files = wrap(&kms, &[KEY], vec![file_key(1)]);
    let mut opened = identities(connect_to(&kms), &[KEY]).unwrap_file_keys(files, Nobody).unwrap();
    let Some(Err(errors)) = opened.remove(&0) else { panic!("no error") };
    assert_eq!(message(&errors[0]), format!("{KEY}: refused for a test"));
}

#[test]
fn one_recipient_that_fails_fails_the_encryption() {
    let kms = Arc::new(MemoryKms::at(1));
    let connect: Box<Connect> = Box::new(move |context| match context {
        Some("down") => Err(refusal("TEST_UNAVAILABLE")),
        _ => Ok(Arc::clone(&kms) as Arc<dyn FileKeyService>),
    });
    let mut plugin = RecipientPlugin::new(connect);
    let down = Address::new(KEY.parse().unwrap(), Some("down".into())).unwrap();
    assert!(plugin.add_recipient(0, "kms", &address(KEY)).is_ok());
    assert!(plugin.add_recipient(1, "kms", &down.to_bytes()).is_ok());
    let Err(errors) = plugin.wrap_file_keys(vec![file_key(1)], Nobody).unwrap() else {
        panic!("wrapped for the first alone")
    };
    assert!(matches!(&errors[..], [RecipientError::Recipient { index: 1, .. }]));
}

#[test]
fn each_context_is_connected_once() {
    let connected = Arc::new(AtomicUsize::new(0));
    let (kms, counter) = (Arc::new(MemoryKms::at(1)), Arc::clone(&connected));
    let connect: Box<Connect> = Box::new(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::clone(&kms) as Arc<dyn FileKeyService>)
    });
    let mut plugin = RecipientPlugin::new(connect);
    for index in 0..3 {
        assert!(plugin.add_recipient(index, "kms", &address(KEY)).is_ok());
    }
    let wrapped = plugin.wrap_file_keys(vec![file_key(1), file_key(2)], Nobody).unwrap();
    assert!(wrapped.is_ok());
    assert_eq!(connected.load(Ordering::SeqCst), 1);
}

#[test]
fn another_plugin_name_and_bytes_that_are_no_address_are_refused() {
    let kms = Arc::new(MemoryKms::at(1));
    let mut recipients = RecipientPlugin::new(connect_to(&kms));
    assert!(recipients.add_recipient(0, "yubikey", &address(KEY)).is_err());
    assert!(recipients.add_recipient(0, "kms", b"\x01").is_err());
    let mut identities = IdentityPlugin::new(connect_to(&kms));
    assert!(identities.add_identity(0, "../kms", &address(KEY)).is_err());
    assert!(identities.add_identity(0, "kms", b"").is_err());
    assert!(identities.add_identity(0, "kms", &address(KEY)).is_ok());
}

#[test]
fn sixty_four_addresses_are_accepted_and_65_refused() {
    let mut plugin = IdentityPlugin::new(connect_to(&Arc::new(MemoryKms::at(1))));
    for index in 0..MAX_ADDRESSES {
        assert!(plugin.add_identity(index, "kms", &address(KEY)).is_ok());
    }
    assert!(plugin.add_identity(MAX_ADDRESSES, "kms", &address(KEY)).is_err());
}

#[test]
fn the_sixteenth_stanza_is_tried_and_the_seventeenth_not() {
    let kms = Arc::new(MemoryKms::at(1));
    for (others, opens) in [(MAX_STANZAS_TRIED - 1, true), (MAX_STANZAS_TRIED, false)] {
        let mut keys = vec![OTHER_KEY; others];
        keys.push(KEY);
        let files = wrap(&kms, &keys, vec![file_key(1)]);
        let mut opened =
            identities(connect_to(&kms), &[KEY]).unwrap_file_keys(files, Nobody).unwrap();
        assert_eq!(matches!(opened.remove(&0), Some(Ok(_))), opens, "{others}");
    }
}
