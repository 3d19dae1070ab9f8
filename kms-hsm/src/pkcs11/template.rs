//! The attributes of every object we make: design section 2.
//!
//! Invariant: no template sets TRUSTED or WRAP_WITH_TRUSTED, and MODIFIABLE=false stands last: SoftHSM 2.6.1 applies
//! attributes in order and refuses what comes after it in C_UnwrapKey. Templates of C_UnwrapKey hold no CKA_VALUE_LEN
//! (CKR_ATTRIBUTE_READ_ONLY there).

use cryptoki::mechanism::MechanismType;
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass};
use kms_core::domain;
use kms_core::id::RootGeneration;
use kms_core::import::RsaSize;
use kms_core::key::CkaId;

use crate::pkcs11::mechanism::KWP_TYPE;

/// Length of every AES key and of root `mac`.
pub(crate) const KEY_BYTES: u64 = 32;
/// 65537: RFC 8017 §3.1 leaves it open, SP 800-56B §6.2 does not go below.
pub(crate) const RSA_EXPONENT: [u8; 3] = [1, 0, 1];
/// The longest CKA_LABEL: labels are for people and never parsed.
pub(crate) const MAX_LABEL_BYTES: usize = 32;

/// What an object is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Root `wrap`.
    Wrap,
    /// Root `mac`.
    Mac,
    /// A tenant's key-wrapping key.
    Key,
}

impl Role {
    /// Returns the word for a root of this role.
    pub(crate) const fn of_root(self) -> &'static str {
        match self {
            Self::Mac => "mac",
            Self::Wrap | Self::Key => "wrap",
        }
    }

    fn key_type(self) -> KeyType {
        match self {
            Self::Wrap | Self::Key => KeyType::AES,
            Self::Mac => KeyType::GENERIC_SECRET,
        }
    }

    fn mechanism(self) -> MechanismType {
        match self {
            Self::Wrap => KWP_TYPE,
            Self::Mac => MechanismType::SHA256_HMAC,
            Self::Key => MechanismType::AES_GCM,
        }
    }

    /// Returns what the object may and may not do, as it is set and as it must read back.
    pub(crate) fn uses(self) -> [Attribute; 7] {
        [
            Attribute::Encrypt(self == Self::Key),
            Attribute::Decrypt(self == Self::Key),
            Attribute::Wrap(self == Self::Wrap),
            Attribute::Unwrap(self == Self::Wrap),
            Attribute::Sign(self == Self::Mac),
            Attribute::Verify(self == Self::Mac),
            Attribute::Derive(false),
        ]
    }
}

/// A root object: token object, sealed from birth in dev mode.
pub(crate) fn root(role: Role, id: CkaId, generation: RootGeneration) -> Vec<Attribute> {
    let label = label(&format!("holdfast-{}-{generation}", role.of_root()));
    let mut template = sealed(role, true);
    template.extend([Attribute::Id(id.0.to_vec()), label, length(), Attribute::Copyable(false)]);
    last(template)
}

/// An `HSM_RESIDENT` key.
pub(crate) fn resident(id: CkaId) -> Vec<Attribute> {
    let mut template = sealed(Role::Key, true);
    template.extend([Attribute::Id(id.0.to_vec()), label("holdfast-key"), length()]);
    template.push(Attribute::Copyable(false));
    last(template)
}

/// An `HSM_WRAPPED` key in use: a session object that C_UnwrapKey makes.
pub(crate) fn unwrapped() -> Vec<Attribute> {
    last(sealed(Role::Key, false))
}

/// The object that exists only inside the job that generates an `HSM_WRAPPED` key: extractable, and good for nothing.
pub(crate) fn nascent() -> Vec<Attribute> {
    let mut template = base(Role::Key, false);
    template.extend([
        Attribute::Extractable(true),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
        length(),
    ]);
    template
}

/// What is opened to be wrapped under a root: it exists only inside the job that imports or re-wraps it, extractable, and good
/// for its check value alone.
pub(crate) fn opened() -> Vec<Attribute> {
    let mut template = base(Role::Key, false);
    template.extend([
        Attribute::Extractable(true),
        Attribute::Encrypt(false),
        Attribute::Decrypt(true),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
        Attribute::AllowedMechanisms(vec![MechanismType::AES_GCM]),
    ]);
    template
}

/// The AES key between the two steps of an import: it exists only inside the job that imports, and unwraps.
pub(crate) fn import_kek() -> Vec<Attribute> {
    let mut template = base(Role::Wrap, false);
    template.extend([
        Attribute::Extractable(false),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(true),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::Derive(false),
        Attribute::AllowedMechanisms(vec![KWP_TYPE]),
    ]);
    last(template)
}

/// An `HSM_RESIDENT` key that C_UnwrapKey makes: templates of it name no length.
pub(crate) fn imported_resident(id: CkaId) -> Vec<Attribute> {
    let mut template = resident(id);
    template.retain(|attribute| attribute.attribute_type() != AttributeType::ValueLen);
    template
}

/// Returns what to read back of an imported `HSM_RESIDENT` key, and what it must say. Its length was shown by its blob.
pub(crate) fn expected_imported_resident(id: CkaId) -> (Vec<AttributeType>, Vec<Attribute>) {
    let (_, mut expected) = expected(Role::Key, Some(id));
    expected.retain(|attribute| attribute.attribute_type() != AttributeType::ValueLen);
    expected.push(Attribute::Local(false));
    (expected.iter().map(Attribute::attribute_type).collect(), expected)
}

/// The public key of an import job: a session object, which goes when it was read and tried.
pub(crate) fn import_public(size: RsaSize) -> Vec<Attribute> {
    vec![
        Attribute::Token(false),
        Attribute::ModulusBits(u64::from(size.bits()).into()),
        Attribute::PublicExponent(RSA_EXPONENT.to_vec()),
        Attribute::Wrap(true),
        Attribute::Encrypt(false),
        Attribute::Verify(false),
    ]
}

/// The private key of an import job: a token object, good for unwrapping alone.
pub(crate) fn import_private(id: CkaId) -> Vec<Attribute> {
    let mut template = import_private_seal();
    template.extend([
        Attribute::Id(id.0.to_vec()),
        label("holdfast-import"),
        Attribute::Copyable(false),
        Attribute::AllowedMechanisms(vec![MechanismType::RSA_PKCS_OAEP]),
    ]);
    last(template)
}

/// Finds the private key of an import job.
pub(crate) fn find_import_private(id: CkaId) -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::Id(id.0.to_vec()),
    ]
}

/// Returns what to read back of the private key of an import job, and what it must say.
pub(crate) fn expected_import_private(id: CkaId) -> (Vec<AttributeType>, Vec<Attribute>) {
    let mut expected = import_private_seal();
    expected.extend([
        Attribute::Id(id.0.to_vec()),
        Attribute::Class(ObjectClass::PRIVATE_KEY),
        Attribute::KeyType(KeyType::RSA),
        Attribute::Local(true),
        Attribute::AlwaysSensitive(true),
        Attribute::NeverExtractable(true),
        Attribute::Copyable(false),
        Attribute::Modifiable(false),
        Attribute::AllowedMechanisms(vec![MechanismType::RSA_PKCS_OAEP]),
    ]);
    (expected.iter().map(Attribute::attribute_type).collect(), expected)
}

fn import_private_seal() -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Unwrap(true),
        Attribute::Decrypt(false),
        Attribute::Sign(false),
        Attribute::SignRecover(false),
        Attribute::Derive(false),
    ]
}

/// A session object that is wrapped to try the key pair of an import job.
pub(crate) fn import_trial() -> Vec<Attribute> {
    public_value(domain::ROOT_WRAP_CHECK_PATTERN)
}

/// A session object that holds a public value, to be wrapped for a check value.
pub(crate) fn public_value(value: &[u8]) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
        Attribute::Value(value.to_vec()),
    ]
}

/// What marks are found by: another application's data objects are not ours.
const MARK_APPLICATION: &[u8] = b"holdfast mark";

/// A mark: a data object that only its owner sees, and nobody can change.
pub(crate) fn mark(value: &[u8]) -> Vec<Attribute> {
    let mut template = find_marks();
    template.extend([
        Attribute::Private(true),
        label("holdfast state journal"),
        Attribute::Value(value.to_vec()),
    ]);
    last(template)
}

/// Finds all marks.
pub(crate) fn find_marks() -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Class(ObjectClass::DATA),
        Attribute::Application(MARK_APPLICATION.to_vec()),
    ]
}

/// Finds a root object.
pub(crate) fn find_root(role: Role, id: CkaId) -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(role.key_type()),
        Attribute::Id(id.0.to_vec()),
    ]
}

/// Finds all `HSM_RESIDENT` keys.
pub(crate) fn find_residents() -> Vec<Attribute> {
    vec![
        Attribute::Token(true),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ]
}

/// Returns what to read back of an object, and what it must say. A token object has an id, by which it is found later.
pub(crate) fn expected(role: Role, id: Option<CkaId>) -> (Vec<AttributeType>, Vec<Attribute>) {
    let mut expected = sealed(role, id.is_some());
    expected.push(Attribute::Modifiable(false));
    // Not set by us, as only the security officer may; whoever asks for a trusted key wraps it under this one.
    expected.extend([Attribute::Trusted(false), Attribute::WrapWithTrusted(false)]);
    // Templates of C_UnwrapKey name neither, and SoftHSM shows no length of what it unwrapped; the blob's is checked.
    if let Some(id) = id {
        expected.extend([Attribute::Copyable(false), length(), Attribute::Id(id.0.to_vec())]);
    }
    (expected.iter().map(Attribute::attribute_type).collect(), expected)
}

/// Returns what to read back of a pinned root, whoever made it, and what it must say.
///
/// A ceremony seals a root after its backup, so CKA_MODIFIABLE may be true.
pub(crate) fn expected_of_pinned(role: Role) -> (Vec<AttributeType>, Vec<Attribute>) {
    let expected = sealed(role, true);
    let mut types: Vec<AttributeType> = expected.iter().map(Attribute::attribute_type).collect();
    types.push(AttributeType::Trusted);
    (types, expected)
}

fn base(role: Role, token: bool) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(role.key_type()),
        Attribute::Token(token),
        Attribute::Private(true),
        Attribute::Sensitive(true),
    ]
}

fn sealed(role: Role, token: bool) -> Vec<Attribute> {
    let mut template = base(role, token);
    template.push(Attribute::Extractable(false));
    template.extend(role.uses());
    template.push(Attribute::AllowedMechanisms(vec![role.mechanism()]));
    template
}

fn last(mut template: Vec<Attribute>) -> Vec<Attribute> {
    template.push(Attribute::Modifiable(false));
    template
}

fn length() -> Attribute {
    Attribute::ValueLen(KEY_BYTES.into())
}

fn label(text: &str) -> Attribute {
    debug_assert!(text.len() <= MAX_LABEL_BYTES, "labels are made here, of bounded parts");
    Attribute::Label(text.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Vec<Attribute>> {
        let id = CkaId([1; 16]);
        let last = RootGeneration::new(u32::MAX).unwrap();
        vec![root(Role::Wrap, id, last), root(Role::Mac, id, last), resident(id), unwrapped()]
    }

    #[test]
    fn every_lasting_object_is_sealed_and_modifiable_stands_last() {
        for template in all() {
            assert!(template.contains(&Attribute::Extractable(false)));
            assert!(template.contains(&Attribute::Sensitive(true)));
            assert!(template.contains(&Attribute::Private(true)));
            assert_eq!(template.last(), Some(&Attribute::Modifiable(false)));
        }
    }

    #[test]
    fn labels_fit_in_32_bytes_for_every_generation() {
        for template in all() {
            for attribute in template {
                if let Attribute::Label(label) = attribute {
                    assert!(label.len() <= MAX_LABEL_BYTES, "{label:?}");
                }
            }
        }
    }

    #[test]
    fn each_role_has_one_mechanism_and_only_its_own_uses() {
        let uses = |role: Role| {
            role.uses().into_iter().filter(|a| format!("{a:?}").contains("true")).count()
        };
        for role in [Role::Wrap, Role::Mac, Role::Key] {
            assert_eq!(uses(role), 2, "{role:?}");
            let (_, expected) = expected(role, Some(CkaId([1; 16])));
            assert!(expected.contains(&Attribute::AllowedMechanisms(vec![role.mechanism()])));
        }
    }

    #[test]
    fn the_unwrap_template_has_no_value_length() {
        assert!(unwrapped().iter().all(|a| a.attribute_type() != AttributeType::ValueLen));
    }

    #[test]
    fn the_nascent_key_is_extractable_and_good_for_nothing() {
        let template = nascent();
        assert!(template.contains(&Attribute::Extractable(true)));
        assert!(template.contains(&Attribute::Encrypt(false)));
        assert!(template.contains(&Attribute::Token(false)));
    }
}
