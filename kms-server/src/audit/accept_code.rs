//! The code by which an operator accepts a database that is not what the log has last seen: it stands for exactly what was
//! looked at, so that it accepts nothing else, and nothing a second time.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{Context, SHA256, digest};
use kms_core::audit::ManifestStamp;
use kms_core::canonical::CanonicalWriter;
use kms_core::domain::ACCEPT_CODE;

/// Short enough to type. It is no secret, and proves nothing: it says which database is meant. Manifests carry MACs, so that
/// nobody makes others until they fit a code.
const CODE_BYTES: usize = 8;

/// Stands for a database beside the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptCode([u8; CODE_BYTES]);

impl fmt::Display for AcceptCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

/// Why a text is no code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a code has 16 hexadecimal digits, as the refusal and `verify-store` print it")]
pub struct InvalidAcceptCode;

impl FromStr for AcceptCode {
    type Err = InvalidAcceptCode;

    fn from_str(text: &str) -> Result<Self, InvalidAcceptCode> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes());
        let bytes = bytes.map_err(|_| InvalidAcceptCode)?;
        bytes.try_into().map(Self).map_err(|_| InvalidAcceptCode)
    }
}

/// What each tenant's manifest is in the log and in the database, in whatever order they are found. 32 bytes each.
#[derive(Clone, Debug, Default)]
pub struct Comparisons {
    hashes: Vec<[u8; 32]>,
}

impl Comparisons {
    /// Adds a tenant: its last manifest in the log, and its manifest in the database.
    pub fn add(
        &mut self,
        tenant: &str,
        seen: Option<&ManifestStamp>,
        stored: Option<&ManifestStamp>,
    ) {
        let mut input = CanonicalWriter::new(ACCEPT_CODE).text(tenant);
        for stamp in [seen, stored] {
            input = input
                .optional(stamp.map(|stamp| stamp.revision.get()))
                .text(stamp.map_or("", |stamp| &stamp.digest));
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &input.finish()).as_ref());
        self.hashes.push(hash);
    }

    /// Returns the code that stands for them, in a log that has this many records of accepted tenants: so that an
    /// acceptance makes the code of no use by which it came about.
    pub fn code(mut self, acceptances: u64) -> AcceptCode {
        self.hashes.sort_unstable();
        let mut context = Context::new(&SHA256);
        context.update(&acceptances.to_be_bytes());
        self.hashes.iter().for_each(|hash| context.update(hash));
        let mut code = [0; CODE_BYTES];
        code.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        AcceptCode(code)
    }
}

#[cfg(test)]
mod tests {
    use kms_core::id::Revision;

    use super::*;

    fn stamp(revision: u64, digest: &str) -> ManifestStamp {
        ManifestStamp { revision: Revision::new(revision), digest: digest.into() }
    }

    type Compared<'d> = (&'d str, Option<ManifestStamp>, Option<ManifestStamp>);

    fn code(compared: &[Compared<'_>], acceptances: u64) -> AcceptCode {
        let mut comparisons = Comparisons::default();
        for (tenant, seen, stored) in compared {
            comparisons.add(tenant, seen.as_ref(), stored.as_ref());
        }
        comparisons.code(acceptances)
    }

    #[test]
    fn every_part_of_every_tenant_decides_and_their_order_does_not() {
        let (t, u) =
            (("t", Some(stamp(2, "a")), Some(stamp(1, "b"))), ("u", None, Some(stamp(1, "b"))));
        assert_eq!(code(&[t.clone(), u.clone()], 0), code(&[u.clone(), t.clone()], 0));
        assert_ne!(code(&[t.clone(), u.clone()], 0), code(&[t.clone(), u.clone()], 1));
        let others: [&[Compared<'_>]; 10] = [
            &[],
            &[t.clone(), u],
            std::slice::from_ref(&t),
            &[("u", t.1.clone(), t.2.clone())],
            &[("t", t.2.clone(), t.1.clone())],
            &[("t", Some(stamp(3, "a")), t.2.clone())],
            &[("t", Some(stamp(2, "c")), t.2.clone())],
            &[("t", t.1.clone(), Some(stamp(0, "b")))],
            &[("t", t.1.clone(), Some(stamp(1, "c")))],
            &[("t", t.1.clone(), None)],
        ];
        for (i, a) in others.iter().enumerate() {
            for b in &others[..i] {
                assert_ne!(code(a, 0), code(b, 0), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn a_code_reads_back_as_it_is_printed_and_nothing_else_does() {
        let code = code(&[("t", None, Some(stamp(1, "b")))], 0);
        let text = code.to_string();
        assert_eq!(text.len(), 16);
        assert_eq!(text.parse(), Ok(code));
        assert_eq!(text.to_uppercase().parse(), Ok(code), "however it was typed");
        let longer = format!("{text}00");
        for wrong in ["", "yes", "01234567890123", "012345678901234", "zz34567890123456", &longer] {
            assert_eq!(wrong.parse::<AcceptCode>(), Err(InvalidAcceptCode), "{wrong}");
        }
    }
}
