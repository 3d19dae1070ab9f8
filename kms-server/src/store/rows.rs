//! Rows to types: every stored value is checked against its type on the way out, whichever engine stored it.
//!
//! A value outside its type means an edited or damaged database, and is [`StoreError::Damaged`], never a default.

use std::time::Duration;

use kms_core::alias::{AliasRow, skeleton};
use kms_core::audit::ManifestStamp;
use kms_core::clock::Timestamp;
use kms_core::consumer::ConsumerRow;
use kms_core::id::{IntentId, KeyUid, KeyVersion, RequestId, Revision, RootGeneration};
use kms_core::import::{ImportMethod, RsaSize};
use kms_core::import_job::ImportJobRow;
use kms_core::key::{
    CheckBlob, CkaId, CounterRow, KeyRow, KeyState, Material, Origin, Protection, Purpose, RowMac,
    Sealed, Sensitivity, VersionRow, WrappedKey,
};
use kms_core::lifecycle::{Destruction, HistoryChange, HistoryRow, KeyDestruction, Rotation};
use kms_core::manifest::{Manifest, RowSet};
use kms_core::name::{AliasName, KeyName, TenantName};
use kms_core::root::{RetiredRoot, RootPin};
use kms_core::state::VersionState;
use kms_core::usage::{Tally, UsageRow, Uses};

use super::{Intent, IntentKind, ListPosition, RequestRecord, StoreError};

/// A row of an engine, read by the names of its columns. A value of another type is [`StoreError::Damaged`].
pub(super) trait Row {
    /// Reads a whole number.
    fn integer(&self, column: &'static str) -> Result<Option<i64>, StoreError>;
    /// Reads a truth value.
    fn boolean(&self, column: &'static str) -> Result<Option<bool>, StoreError>;
    /// Reads a text.
    fn text(&self, column: &'static str) -> Result<Option<String>, StoreError>;
    /// Reads bytes.
    fn bytes(&self, column: &'static str) -> Result<Option<Vec<u8>>, StoreError>;
}

/// One row, read column by column; remembers the table for errors.
struct Columns<'a> {
    table: &'static str,
    row: &'a dyn Row,
}

impl Columns<'_> {
    fn integer(&self, column: &'static str) -> Result<i64, StoreError> {
        self.row.integer(column)?.ok_or_else(|| self.damaged(column))
    }

    fn boolean(&self, column: &'static str) -> Result<bool, StoreError> {
        self.row.boolean(column)?.ok_or_else(|| self.damaged(column))
    }

    fn text(&self, column: &'static str) -> Result<String, StoreError> {
        self.row.text(column)?.ok_or_else(|| self.damaged(column))
    }

    fn bytes(&self, column: &'static str) -> Result<Vec<u8>, StoreError> {
        self.row.bytes(column)?.ok_or_else(|| self.damaged(column))
    }

    /// Reads a text and parses it.
    fn parsed<T>(
        &self,
        column: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, StoreError> {
        let text = self.text(column)?;
        parse(&text).ok_or_else(|| self.damaged(column))
    }

    fn array<const N: usize>(&self, column: &'static str) -> Result<[u8; N], StoreError> {
        let bytes = self.bytes(column)?;
        bytes.try_into().map_err(|_| self.damaged(column))
    }

    fn time(&self, column: &'static str) -> Result<Timestamp, StoreError> {
        self.integer(column).map(Timestamp::from_unix_ms)
    }

    fn optional_time(&self, column: &'static str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.row.integer(column)?.map(Timestamp::from_unix_ms))
    }

    fn number(&self, column: &'static str) -> Result<u64, StoreError> {
        u64::try_from(self.integer(column)?).map_err(|_| self.damaged(column))
    }

    fn version(&self, column: &'static str) -> Result<KeyVersion, StoreError> {
        let number = u32::try_from(self.integer(column)?).ok();
        number.and_then(KeyVersion::new).ok_or_else(|| self.damaged(column))
    }

    fn generation(&self) -> Result<RootGeneration, StoreError> {
        let number = u32::try_from(self.integer("generation")?).ok();
        number.and_then(RootGeneration::new).ok_or_else(|| self.damaged("generation"))
    }

    fn revision(&self) -> Result<Revision, StoreError> {
        self.number("revision").map(Revision::new)
    }

    fn rotation(&self) -> Result<Option<Rotation>, StoreError> {
        let Some(due) = self.row.integer("rotate_time")? else { return Ok(None) };
        let period = Duration::from_secs(self.number("rotation_period_s")?);
        Ok(Some(Rotation { period, due: Timestamp::from_unix_ms(due) }))
    }

    fn destruction(&self) -> Result<Option<Destruction>, StoreError> {
        let Some(time) = self.row.integer("destroy_time")? else { return Ok(None) };
        let returns_to = self.parsed("destroy_returns", VersionState::parse)?;
        let despite_consumers = self.boolean("destroy_despite_consumers")?;
        let despite_recent_use = self.boolean("destroy_despite_use")?;
        let time = Timestamp::from_unix_ms(time);
        Ok(Some(Destruction { time, returns_to, despite_consumers, despite_recent_use }))
    }

    fn key_destruction(&self) -> Result<Option<KeyDestruction>, StoreError> {
        let Some(time) = self.row.integer("destroy_time")? else { return Ok(None) };
        Ok(Some(KeyDestruction {
            time: Timestamp::from_unix_ms(time),
            despite_consumers: self.boolean("destroy_despite_consumers")?,
            despite_recent_use: self.boolean("destroy_despite_use")?,
            begun: self.boolean("destroy_begun")?,
        }))
    }

    fn uid(&self, column: &'static str) -> Result<KeyUid, StoreError> {
        self.array(column).map(KeyUid::from_bytes)
    }

    fn tenant(&self) -> Result<TenantName, StoreError> {
        self.parsed("tenant", |id| TenantName::from_id(id).ok())
    }

    fn key_name(&self) -> Result<KeyName, StoreError> {
        let tenant = self.tenant()?;
        self.parsed("key_id", |id| KeyName::new(tenant, id).ok())
    }

    fn sealed<R>(&self, row: R) -> Result<Sealed<R>, StoreError> {
        Ok(Sealed { row, mac: RowMac(self.array("mac")?), generation: self.generation()? })
    }

    fn damaged(&self, column: &'static str) -> StoreError {
        StoreError::Damaged { detail: format!("{}.{column} has no valid value", self.table) }
    }
}

/// Reads a row of `keys`.
pub(super) fn key(row: &dyn Row) -> Result<Sealed<KeyRow>, StoreError> {
    let columns = Columns { table: "keys", row };
    columns.sealed(KeyRow {
        uid: columns.uid("uid")?,
        name: columns.key_name()?,
        purpose: columns.parsed("purpose", Purpose::parse)?,
        protection: columns.parsed("protection", Protection::parse)?,
        state: columns.parsed("state", KeyState::parse)?,
        owner: columns.text("owner")?,
        sensitivity: columns.parsed("sensitivity", Sensitivity::parse)?,
        usage: columns.text("usage")?,
        cryptoperiod: Duration::from_secs(columns.number("cryptoperiod_s")?),
        recipient_usage_period: Duration::from_secs(columns.number("recipient_usage_period_s")?),
        labels: columns.parsed("labels", |json| serde_json::from_str(json).ok())?,
        create_time: columns.time("create_time")?,
        update_time: columns.time("update_time")?,
        revision: columns.revision()?,
        primary: columns.version("primary_version")?,
        latest: columns.version("latest_version")?,
        consumers: u32::try_from(columns.number("consumer_count")?)
            .map_err(|_| columns.damaged("consumer_count"))?,
        rotation: columns.rotation()?,
        destruction: columns.key_destruction()?,
    })
}

/// Reads a row of `versions`.
pub(super) fn version(row: &dyn Row) -> Result<Sealed<VersionRow>, StoreError> {
    let columns = Columns { table: "versions", row };
    let kind = columns.text("material_kind")?;
    let material = match kind.as_str() {
        "wrapped" => Material::Wrapped(WrappedKey(columns.bytes("material")?)),
        "resident" => Material::Resident(CkaId(columns.array("material")?)),
        _ => return Err(columns.damaged("material_kind")),
    };
    let check = columns.bytes("check_blob")?;
    columns.sealed(VersionRow {
        key_uid: columns.uid("key_uid")?,
        version: columns.version("version")?,
        state: columns.parsed("state", VersionState::parse)?,
        material,
        check: CheckBlob::from_bytes(&check).ok_or_else(|| columns.damaged("check_blob"))?,
        origin: columns.parsed("origin", Origin::parse)?,
        create_time: columns.time("create_time")?,
        state_time: columns.time("state_time")?,
        state_reason: columns.text("state_reason")?,
        state_actor: columns.text("state_actor")?,
        activate_time: columns.optional_time("activate_time")?,
        deactivate_time: columns.optional_time("deactivate_time")?,
        destruction: columns.destruction()?,
        revision: columns.revision()?,
    })
}

/// Reads a row of `consumers`.
pub(super) fn consumer(row: &dyn Row) -> Result<Sealed<ConsumerRow>, StoreError> {
    let columns = Columns { table: "consumers", row };
    columns.sealed(ConsumerRow {
        key_uid: columns.uid("key_uid")?,
        consumer_id: columns.text("consumer_id")?,
        description: columns.text("description")?,
        create_time: columns.time("create_time")?,
        actor: columns.text("actor")?,
        revision: columns.revision()?,
    })
}

/// Reads a row of `aliases`.
pub(super) fn alias(row: &dyn Row) -> Result<Sealed<AliasRow>, StoreError> {
    let columns = Columns { table: "aliases", row };
    let key = columns.key_name()?;
    let id = columns.text("alias_id")?;
    let name = AliasName::new(key.tenant().clone(), &id);
    let name = name.map_err(|_| columns.damaged("alias_id"))?;
    // No MAC covers it: it follows from the id.
    if columns.text("skeleton")? != skeleton(&id) {
        return Err(columns.damaged("skeleton"));
    }
    columns.sealed(AliasRow {
        name,
        key,
        key_uid: columns.uid("key_uid")?,
        create_time: columns.time("create_time")?,
        update_time: columns.time("update_time")?,
        actor: columns.text("actor")?,
        reason: columns.text("reason")?,
        revision: columns.revision()?,
    })
}

/// Reads a row of `import_jobs`.
pub(super) fn import_job(row: &dyn Row) -> Result<Sealed<ImportJobRow>, StoreError> {
    let columns = Columns { table: "import_jobs", row };
    let bits = u32::try_from(columns.number("rsa_bits")?).ok().and_then(RsaSize::from_bits);
    columns.sealed(ImportJobRow {
        id: CkaId(columns.array("id")?),
        key: columns.key_name()?,
        key_uid: columns.uid("key_uid")?,
        method: columns.parsed("method", ImportMethod::parse)?,
        size: bits.ok_or_else(|| columns.damaged("rsa_bits"))?,
        public_key: columns.bytes("public_key")?,
        create_time: columns.time("create_time")?,
        expire_time: columns.time("expire_time")?,
        actor: columns.text("actor")?,
    })
}

/// Reads a row of `history`.
pub(super) fn history(row: &dyn Row) -> Result<Sealed<HistoryRow>, StoreError> {
    let columns = Columns { table: "history", row };
    let change = match columns.integer("version")? {
        0 => HistoryChange::Fields { detail: columns.text("detail")? },
        _ => HistoryChange::State {
            version: columns.version("version")?,
            from: match columns.row.text("from_state")? {
                Some(_) => Some(columns.parsed("from_state", VersionState::parse)?),
                None => None,
            },
            to: columns.parsed("to_state", VersionState::parse)?,
        },
    };
    columns.sealed(HistoryRow {
        key_uid: columns.uid("key_uid")?,
        change,
        old_revision: columns.number("old_revision").map(Revision::new)?,
        revision: columns.revision()?,
        time: columns.time("time")?,
        actor: columns.text("actor")?,
        reason: columns.text("reason")?,
    })
}

/// Reads a row of `counters`.
pub(super) fn counter(row: &dyn Row) -> Result<Sealed<CounterRow>, StoreError> {
    let columns = Columns { table: "counters", row };
    columns.sealed(CounterRow {
        key_uid: columns.uid("key_uid")?,
        version: columns.version("version")?,
        leased: columns.number("leased")?,
        revision: columns.revision()?,
    })
}

/// Reads a row of `usage`.
pub(super) fn usage(row: &dyn Row) -> Result<Sealed<UsageRow>, StoreError> {
    let columns = Columns { table: "usage", row };
    let tally = |count, first, last| -> Result<Tally, StoreError> {
        let span = columns.optional_time(first)?.zip(columns.optional_time(last)?);
        Ok(Tally { count: columns.number(count)?, span })
    };
    columns.sealed(UsageRow {
        key_uid: columns.uid("key_uid")?,
        version: columns.version("version")?,
        uses: Uses {
            protect: tally("protects", "first_protect", "last_protect")?,
            process: tally("processes", "first_process", "last_process")?,
            rewrap: tally("rewraps", "first_rewrap", "last_rewrap")?,
            refused: tally("refusals", "first_refusal", "last_refusal")?,
        },
        revision: columns.revision()?,
    })
}

/// Reads a row of `manifests`.
pub(super) fn manifest(row: &dyn Row) -> Result<Sealed<Manifest>, StoreError> {
    let columns = Columns { table: "manifests", row };
    let rows = columns.bytes("row_set")?;
    columns.sealed(Manifest {
        tenant: columns.tenant()?,
        revision: columns.revision()?,
        rows: RowSet::from_bytes(&rows).ok_or_else(|| columns.damaged("row_set"))?,
    })
}

/// Reads a row of `roots`.
pub(super) fn root(row: &dyn Row) -> Result<(RootPin, RowMac), StoreError> {
    let columns = Columns { table: "roots", row };
    let pin = RootPin {
        generation: columns.generation()?,
        token_serial: columns.text("token_serial")?,
        wrap_id: CkaId(columns.array("wrap_id")?),
        wrap_check: columns.bytes("wrap_check")?,
        mac_id: CkaId(columns.array("mac_id")?),
        mac_check: columns.bytes("mac_check")?,
    };
    Ok((pin, RowMac(columns.array("mac")?)))
}

/// Reads a row of `retired_roots`.
pub(super) fn retired_root(row: &dyn Row) -> Result<Sealed<RetiredRoot>, StoreError> {
    let columns = Columns { table: "retired_roots", row };
    let number = u32::try_from(columns.integer("retired")?).ok();
    columns.sealed(RetiredRoot {
        retired: number.and_then(RootGeneration::new).ok_or_else(|| columns.damaged("retired"))?,
        time: columns.time("time")?,
        actor: columns.text("actor")?,
        reason: columns.text("reason")?,
    })
}

/// Reads the name of a key, and where it stands in the list of its tenant.
pub(super) fn key_position(row: &dyn Row) -> Result<(ListPosition, KeyName), StoreError> {
    let columns = Columns { table: "keys", row };
    let create_time = columns.time("create_time")?;
    Ok((ListPosition { create_time, uid: columns.uid("uid")? }, columns.key_name()?))
}

/// Reads a row of `requests`.
pub(super) fn request(row: &dyn Row) -> Result<Sealed<RequestRecord>, StoreError> {
    let columns = Columns { table: "requests", row };
    columns.sealed(RequestRecord {
        tenant: columns.tenant()?,
        principal: columns.text("principal")?,
        request_id: RequestId::from_bytes(columns.array("request_id")?),
        method: columns.text("method")?,
        request_hash: columns.array("request_hash")?,
        result: columns.bytes("result")?,
        time: columns.time("time")?,
    })
}

/// Reads a row of `intents`.
pub(super) fn intent(row: &dyn Row) -> Result<Sealed<Intent>, StoreError> {
    let columns = Columns { table: "intents", row };
    let applied = match columns.row.integer("applied_revision")? {
        None => None,
        Some(_) => Some(ManifestStamp {
            revision: columns.number("applied_revision").map(Revision::new)?,
            digest: columns.text("applied_digest")?,
        }),
    };
    columns.sealed(Intent {
        id: IntentId::from_bytes(columns.array("id")?),
        kind: columns.parsed("kind", IntentKind::parse)?,
        principal: columns.text("principal")?,
        key_name: columns.key_name()?,
        key_uid: columns.uid("key_uid")?,
        version: columns.version("version")?,
        protection: columns.parsed("protection", Protection::parse)?,
        resident_id: CkaId(columns.array("resident_id")?),
        time: columns.time("time")?,
        applied,
    })
}

/// Reads a CKA_ID of `versions.material`.
pub(super) fn resident_id(row: &dyn Row) -> Result<CkaId, StoreError> {
    Columns { table: "versions", row }.array("material").map(CkaId)
}
