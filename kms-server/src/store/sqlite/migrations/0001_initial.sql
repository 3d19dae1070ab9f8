-- 0001: keys, versions, counters, manifests, roots, requests, intents.
--
-- Text lengths are in bytes and repeat the bounds of kms-core: a row that breaks one is a defect of ours, and is refused
-- here too. Times are milliseconds since 1970, UTC. `mac` is the HMAC-SHA-256 of the row under root `mac` of `generation`.

CREATE TABLE roots (
    generation   INTEGER NOT NULL PRIMARY KEY CHECK (generation BETWEEN 1 AND 4294967295),
    token_serial TEXT    NOT NULL CHECK (octet_length(token_serial) <= 64),
    wrap_id      BLOB    NOT NULL CHECK (length(wrap_id) = 16),
    wrap_check   BLOB    NOT NULL CHECK (length(wrap_check) <= 128),
    mac_id       BLOB    NOT NULL CHECK (length(mac_id) = 16),
    mac_check    BLOB    NOT NULL CHECK (length(mac_check) <= 128),
    mac          BLOB    NOT NULL CHECK (length(mac) = 32)
) STRICT;

-- Root sets that nothing depends on any more. `generation` is that of the root which seals the row.
CREATE TABLE retired_roots (
    retired    INTEGER NOT NULL PRIMARY KEY REFERENCES roots (generation),
    time       INTEGER NOT NULL,
    actor      TEXT    NOT NULL CHECK (octet_length(actor) <= 2048),
    reason     TEXT    NOT NULL CHECK (octet_length(reason) <= 256),
    generation INTEGER NOT NULL CHECK (generation > retired),
    mac        BLOB    NOT NULL CHECK (length(mac) = 32)
) STRICT;

-- The primary is a column of the key, so a key has exactly one; the deferred reference makes it an existing version.
CREATE TABLE keys (
    uid             BLOB    NOT NULL PRIMARY KEY CHECK (length(uid) = 16),
    tenant          TEXT    NOT NULL CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    key_id          TEXT    NOT NULL CHECK (octet_length(key_id) BETWEEN 1 AND 63),
    purpose         TEXT    NOT NULL CHECK (purpose IN ('WRAP')),
    protection      TEXT    NOT NULL CHECK (protection IN ('HSM_WRAPPED', 'HSM_RESIDENT')),
    state           TEXT    NOT NULL CHECK (state IN ('ENABLED', 'DISABLED', 'DESTROY_SCHEDULED', 'DESTROYED')),
    owner           TEXT    NOT NULL CHECK (octet_length(owner) <= 256),
    sensitivity     TEXT    NOT NULL CHECK (sensitivity IN ('LOW', 'MEDIUM', 'HIGH')),
    usage           TEXT    NOT NULL CHECK (octet_length(usage) <= 1024),
    cryptoperiod_s  INTEGER NOT NULL CHECK (cryptoperiod_s BETWEEN 1 AND 315619200),
    recipient_usage_period_s INTEGER NOT NULL CHECK (recipient_usage_period_s BETWEEN cryptoperiod_s AND 946684800),
    labels          TEXT    NOT NULL CHECK (json_valid(labels) AND octet_length(labels) <= 65536),
    create_time     INTEGER NOT NULL,
    update_time     INTEGER NOT NULL,
    revision        INTEGER NOT NULL CHECK (revision >= 1),
    primary_version INTEGER NOT NULL CHECK (primary_version BETWEEN 1 AND latest_version),
    latest_version  INTEGER NOT NULL CHECK (latest_version <= 4294967295),
    consumer_count  INTEGER NOT NULL CHECK (consumer_count BETWEEN 0 AND 1000),
    -- Rotation by period, and when the primary gives way.
    rotation_period_s INTEGER CHECK (rotation_period_s BETWEEN 1 AND 315619200),
    rotate_time       INTEGER,
    -- A planned destruction of the whole key: when, in spite of what, and whether versions are being destroyed.
    destroy_time              INTEGER,
    destroy_despite_consumers INTEGER CHECK (destroy_despite_consumers IN (0, 1)),
    destroy_despite_use       INTEGER CHECK (destroy_despite_use IN (0, 1)),
    destroy_begun             INTEGER CHECK (destroy_begun IN (0, 1)),
    generation      INTEGER NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac             BLOB    NOT NULL CHECK (length(mac) = 32),
    CHECK ((rotation_period_s IS NULL) = (rotate_time IS NULL)),
    CHECK ((destroy_time IS NULL) = (state <> 'DESTROY_SCHEDULED')),
    CHECK ((destroy_time IS NULL) = (destroy_despite_consumers IS NULL)),
    CHECK ((destroy_time IS NULL) = (destroy_despite_use IS NULL)),
    CHECK ((destroy_time IS NULL) = (destroy_begun IS NULL)),
    UNIQUE (tenant, key_id),
    FOREIGN KEY (uid, primary_version) REFERENCES versions (key_uid, version) DEFERRABLE INITIALLY DEFERRED
) STRICT, WITHOUT ROWID;

CREATE INDEX keys_by_age ON keys (tenant, create_time, uid);
CREATE INDEX keys_to_rotate ON keys (rotate_time, uid) WHERE rotate_time IS NOT NULL;
CREATE INDEX keys_to_destroy ON keys (destroy_time, uid) WHERE destroy_time IS NOT NULL;

CREATE TABLE versions (
    key_uid         BLOB    NOT NULL REFERENCES keys (uid),
    version         INTEGER NOT NULL CHECK (version BETWEEN 1 AND 4294967295),
    state           TEXT    NOT NULL CHECK (state IN ('PRE_ACTIVATION', 'ACTIVE', 'SUSPENDED', 'DEACTIVATED',
                                                      'COMPROMISED', 'DESTROY_SCHEDULED', 'DESTROYED')),
    material_kind   TEXT    NOT NULL CHECK (material_kind IN ('wrapped', 'resident')),
    material        BLOB    NOT NULL CHECK (CASE material_kind WHEN 'resident' THEN length(material) = 16
                                            ELSE length(material) BETWEEN 24 AND 512 OR state = 'DESTROYED' END),
    check_blob      BLOB    NOT NULL CHECK (length(check_blob) BETWEEN 12 AND 256),
    origin          TEXT    NOT NULL CHECK (origin IN ('GENERATED', 'IMPORTED')),
    create_time     INTEGER NOT NULL,
    state_time      INTEGER NOT NULL,
    state_reason    TEXT    NOT NULL CHECK (octet_length(state_reason) <= 256),
    state_actor     TEXT    NOT NULL CHECK (octet_length(state_actor) <= 2048),
    -- When it became ACTIVE, or in PRE_ACTIVATION when it is to.
    activate_time   INTEGER,
    deactivate_time INTEGER,
    -- A planned destruction, and the state that cancelling it leads back to.
    destroy_time    INTEGER,
    destroy_returns TEXT    CHECK (destroy_returns IN ('DEACTIVATED', 'COMPROMISED')),
    -- 1 when it is made although consumers of the key are registered.
    destroy_despite_consumers INTEGER NOT NULL CHECK (destroy_despite_consumers IN (0, 1)),
    destroy_despite_use       INTEGER NOT NULL CHECK (destroy_despite_use IN (0, 1)),
    revision        INTEGER NOT NULL CHECK (revision >= 1),
    generation      INTEGER NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac             BLOB    NOT NULL CHECK (length(mac) = 32),
    PRIMARY KEY (key_uid, version),
    CHECK (activate_time IS NOT NULL OR state NOT IN ('ACTIVE', 'SUSPENDED', 'DEACTIVATED')),
    CHECK ((destroy_time IS NULL) = (destroy_returns IS NULL)),
    CHECK ((destroy_time IS NULL) = (state <> 'DESTROY_SCHEDULED'))
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX versions_resident ON versions (material)
    WHERE material_kind = 'resident' AND state <> 'DESTROYED';
-- One staged version a key at most: it is what the next rollover puts in the primary's place.
CREATE UNIQUE INDEX versions_staged ON versions (key_uid) WHERE state = 'PRE_ACTIVATION';
CREATE INDEX versions_to_activate ON versions (activate_time, key_uid, version)
    WHERE state = 'PRE_ACTIVATION' AND activate_time IS NOT NULL;
CREATE INDEX versions_due ON versions (deactivate_time, key_uid, version)
    WHERE state = 'ACTIVE' AND deactivate_time IS NOT NULL;
CREATE INDEX versions_to_destroy ON versions (destroy_time, key_uid, version)
    WHERE destroy_time IS NOT NULL;

-- Who has said to depend on a key. Rows are made and taken away, never changed.
CREATE TABLE consumers (
    key_uid     BLOB    NOT NULL REFERENCES keys (uid),
    consumer_id TEXT    NOT NULL CHECK (octet_length(consumer_id) BETWEEN 1 AND 63),
    description TEXT    NOT NULL CHECK (octet_length(description) <= 256),
    create_time INTEGER NOT NULL,
    actor       TEXT    NOT NULL CHECK (octet_length(actor) <= 2048),
    revision    INTEGER NOT NULL CHECK (revision >= 1),
    generation  INTEGER NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac         BLOB    NOT NULL CHECK (length(mac) = 32),
    PRIMARY KEY (key_uid, consumer_id)
) STRICT, WITHOUT ROWID;

-- Names that point to a key. `skeleton` is what the id looks like (kms-core/src/alias.rs). `revision` is that of the tenant's
-- manifest with the row, so no two aliases of a tenant have the same, at any time.
CREATE TABLE aliases (
    tenant      TEXT    NOT NULL CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    alias_id    TEXT    NOT NULL CHECK (octet_length(alias_id) BETWEEN 1 AND 63),
    skeleton    TEXT    NOT NULL CHECK (octet_length(skeleton) BETWEEN 1 AND 63),
    key_id      TEXT    NOT NULL CHECK (octet_length(key_id) BETWEEN 1 AND 63),
    key_uid     BLOB    NOT NULL REFERENCES keys (uid),
    create_time INTEGER NOT NULL,
    update_time INTEGER NOT NULL,
    actor       TEXT    NOT NULL CHECK (octet_length(actor) <= 2048),
    reason      TEXT    NOT NULL CHECK (octet_length(reason) <= 256),
    revision    INTEGER NOT NULL CHECK (revision >= 1),
    generation  INTEGER NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac         BLOB    NOT NULL CHECK (length(mac) = 32),
    PRIMARY KEY (tenant, alias_id),
    UNIQUE (tenant, skeleton),
    UNIQUE (tenant, revision)
) STRICT, WITHOUT ROWID;

CREATE INDEX aliases_of_key ON aliases (key_uid, revision);

-- What happened to a key: one entry a change, written with it. Version 0 stands for the key itself.
CREATE TABLE history (
    key_uid      BLOB    NOT NULL REFERENCES keys (uid) DEFERRABLE INITIALLY DEFERRED,
    version      INTEGER NOT NULL CHECK (version BETWEEN 0 AND 4294967295),
    revision     INTEGER NOT NULL CHECK (revision > old_revision),
    old_revision INTEGER NOT NULL CHECK (old_revision >= 0),
    time         INTEGER NOT NULL,
    from_state   TEXT,
    to_state     TEXT,
    detail       TEXT    CHECK (octet_length(detail) <= 262144),
    actor        TEXT    NOT NULL CHECK (octet_length(actor) <= 2048),
    reason       TEXT    NOT NULL CHECK (octet_length(reason) <= 256),
    generation   INTEGER NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac          BLOB    NOT NULL CHECK (length(mac) = 32),
    PRIMARY KEY (key_uid, version, revision),
    CHECK ((version = 0) = (to_state IS NULL)),
    CHECK ((version = 0) = (detail IS NOT NULL)),
    CHECK (version <> 0 OR from_state IS NULL)
) STRICT, WITHOUT ROWID;

CREATE INDEX history_by_time ON history (key_uid, time, version, revision);

-- 2^32 invocations are the limit of a version (SP 800-38D 8.3).
CREATE TABLE counters (
    key_uid    BLOB    NOT NULL,
    version    INTEGER NOT NULL,
    leased     INTEGER NOT NULL CHECK (leased BETWEEN 0 AND 4294967296),
    revision   INTEGER NOT NULL CHECK (revision >= 1),
    generation INTEGER NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac        BLOB    NOT NULL CHECK (length(mac) = 32),
    PRIMARY KEY (key_uid, version),
    FOREIGN KEY (key_uid, version) REFERENCES versions (key_uid, version)
) STRICT, WITHOUT ROWID;

-- How versions were used: evidence for retiring them, written once a minute.
CREATE TABLE usage (
    key_uid       BLOB    NOT NULL,
    version       INTEGER NOT NULL,
    protects      INTEGER NOT NULL CHECK (protects >= 0),
    first_protect INTEGER,
    last_protect  INTEGER,
    processes     INTEGER NOT NULL CHECK (processes >= 0),
    first_process INTEGER,
    last_process  INTEGER,
    rewraps       INTEGER NOT NULL CHECK (rewraps >= 0),
    first_rewrap  INTEGER,
    last_rewrap   INTEGER,
    -- Attempts while the key is disabled, or a destruction is planned.
    refusals      INTEGER NOT NULL CHECK (refusals >= 0),
    first_refusal INTEGER,
    last_refusal  INTEGER,
    revision      INTEGER NOT NULL CHECK (revision >= 1),
    generation    INTEGER NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac           BLOB    NOT NULL CHECK (length(mac) = 32),
    PRIMARY KEY (key_uid, version),
    FOREIGN KEY (key_uid, version) REFERENCES versions (key_uid, version),
    CHECK ((first_protect IS NULL) = (last_protect IS NULL)),
    CHECK ((first_process IS NULL) = (last_process IS NULL)),
    CHECK ((first_rewrap IS NULL) = (last_rewrap IS NULL)),
    CHECK ((first_refusal IS NULL) = (last_refusal IS NULL))
) STRICT, WITHOUT ROWID;

CREATE TABLE manifests (
    tenant     TEXT    NOT NULL PRIMARY KEY CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    revision   INTEGER NOT NULL CHECK (revision >= 1),
    row_set    BLOB    NOT NULL CHECK (length(row_set) = 2048),
    generation INTEGER NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac        BLOB    NOT NULL CHECK (length(mac) = 32)
) STRICT, WITHOUT ROWID;

CREATE TABLE requests (
    tenant       TEXT    NOT NULL CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    principal    TEXT    NOT NULL CHECK (octet_length(principal) <= 2048),
    request_id   BLOB    NOT NULL CHECK (length(request_id) = 16),
    method       TEXT    NOT NULL CHECK (octet_length(method) <= 256),
    request_hash BLOB    NOT NULL CHECK (length(request_hash) = 32),
    result       BLOB    NOT NULL CHECK (length(result) <= 65536),
    time         INTEGER NOT NULL,
    generation   INTEGER NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac          BLOB    NOT NULL CHECK (length(mac) = 32),
    PRIMARY KEY (principal, request_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX requests_by_time ON requests (time);

-- How many requests of a tenant are remembered, kept by the triggers below: counting them takes longer than a change does.
-- It has no MAC: it bounds the disk, which whoever edits the database can fill anyhow.
CREATE TABLE request_counts (
    tenant     TEXT    NOT NULL PRIMARY KEY CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    remembered INTEGER NOT NULL CHECK (remembered >= 0)
) STRICT, WITHOUT ROWID;

CREATE TABLE intents (
    id          BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    kind        TEXT    NOT NULL CHECK (octet_length(kind) BETWEEN 1 AND 64),
    principal   TEXT    NOT NULL CHECK (octet_length(principal) <= 2048),
    tenant      TEXT    NOT NULL CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    key_id      TEXT    NOT NULL CHECK (octet_length(key_id) BETWEEN 1 AND 63),
    key_uid     BLOB    NOT NULL CHECK (length(key_uid) = 16),
    version     INTEGER NOT NULL CHECK (version BETWEEN 1 AND 4294967295),
    protection  TEXT    NOT NULL CHECK (protection IN ('HSM_WRAPPED', 'HSM_RESIDENT')),
    resident_id BLOB    NOT NULL CHECK (length(resident_id) = 16),
    time        INTEGER NOT NULL,
    -- The manifest as the mutation left it, once it is committed.
    applied_revision INTEGER CHECK (applied_revision >= 1),
    applied_digest   TEXT    CHECK (octet_length(applied_digest) = 64),
    generation  INTEGER NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac         BLOB    NOT NULL CHECK (length(mac) = 32),
    sequence    INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    CHECK ((applied_revision IS NULL) = (applied_digest IS NULL))
) STRICT;

CREATE TABLE probe (
    id   INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    time INTEGER NOT NULL
) STRICT;

CREATE TRIGGER requests_remembered AFTER INSERT ON requests
BEGIN
    INSERT INTO request_counts (tenant, remembered) VALUES (NEW.tenant, 1)
    ON CONFLICT (tenant) DO UPDATE SET remembered = remembered + 1;
END;

CREATE TRIGGER requests_forgotten AFTER DELETE ON requests
BEGIN UPDATE request_counts SET remembered = remembered - 1 WHERE tenant = OLD.tenant; END;

-- A revision only grows, and what identifies a row never changes. Only a newer root seals a row anew at the revision it has,
-- and nothing of what it says changes then.
CREATE TRIGGER keys_guard BEFORE UPDATE ON keys
WHEN (NEW.revision <= OLD.revision AND NOT (NEW.revision = OLD.revision AND NEW.generation > OLD.generation AND
        (NEW.state, NEW.owner, NEW.sensitivity, NEW.usage, NEW.cryptoperiod_s, NEW.recipient_usage_period_s, NEW.labels, NEW.update_time,
         NEW.primary_version, NEW.latest_version, NEW.consumer_count, NEW.rotation_period_s,
         NEW.rotate_time, NEW.destroy_time, NEW.destroy_despite_consumers, NEW.destroy_despite_use,
         NEW.destroy_begun)
        IS
        (OLD.state, OLD.owner, OLD.sensitivity, OLD.usage, OLD.cryptoperiod_s, OLD.recipient_usage_period_s, OLD.labels, OLD.update_time,
         OLD.primary_version, OLD.latest_version, OLD.consumer_count, OLD.rotation_period_s,
         OLD.rotate_time, OLD.destroy_time, OLD.destroy_despite_consumers, OLD.destroy_despite_use,
         OLD.destroy_begun)))
    OR NEW.uid IS NOT OLD.uid OR NEW.tenant IS NOT OLD.tenant
    OR NEW.key_id IS NOT OLD.key_id OR NEW.purpose IS NOT OLD.purpose OR NEW.protection IS NOT OLD.protection
    OR NEW.create_time IS NOT OLD.create_time OR NEW.latest_version < OLD.latest_version
    -- Of a tombstone aliases may still go: nothing but revision and time of the change changes with them.
    OR (OLD.state = 'DESTROYED' AND
        (NEW.state, NEW.owner, NEW.sensitivity, NEW.usage, NEW.cryptoperiod_s, NEW.recipient_usage_period_s, NEW.labels,
         NEW.primary_version, NEW.latest_version, NEW.consumer_count, NEW.rotation_period_s, NEW.rotate_time)
        IS NOT
        (OLD.state, OLD.owner, OLD.sensitivity, OLD.usage, OLD.cryptoperiod_s, OLD.recipient_usage_period_s, OLD.labels,
         OLD.primary_version, OLD.latest_version, OLD.consumer_count, OLD.rotation_period_s, OLD.rotate_time))
    OR (OLD.destroy_begun AND NEW.state <> 'DESTROYED'
        AND (NEW.destroy_begun, NEW.destroy_time) IS NOT (1, OLD.destroy_time))
BEGIN SELECT RAISE(ABORT, 'keys: an immutable column changed or the revision did not grow'); END;

CREATE TRIGGER versions_guard BEFORE UPDATE ON versions
WHEN (NEW.revision <= OLD.revision AND NOT (NEW.revision = OLD.revision AND NEW.generation > OLD.generation AND
        (NEW.state, NEW.material_kind, NEW.check_blob, NEW.state_time, NEW.state_reason, NEW.state_actor,
         NEW.activate_time, NEW.deactivate_time, NEW.destroy_time, NEW.destroy_returns,
         NEW.destroy_despite_consumers, NEW.destroy_despite_use)
        IS
        (OLD.state, OLD.material_kind, OLD.check_blob, OLD.state_time, OLD.state_reason, OLD.state_actor,
         OLD.activate_time, OLD.deactivate_time, OLD.destroy_time, OLD.destroy_returns,
         OLD.destroy_despite_consumers, OLD.destroy_despite_use)))
    OR NEW.key_uid IS NOT OLD.key_uid OR NEW.version IS NOT OLD.version
    OR NEW.create_time IS NOT OLD.create_time OR NEW.origin IS NOT OLD.origin
    OR (OLD.state = 'DESTROYED' AND NEW.revision > OLD.revision)
    OR (OLD.state = 'COMPROMISED' AND NEW.state NOT IN ('COMPROMISED', 'DESTROY_SCHEDULED', 'DESTROYED'))
BEGIN SELECT RAISE(ABORT, 'versions: an immutable column changed or the revision did not grow'); END;

-- A counter gives back at most the unused rest of one lease, 2^20 at most.
CREATE TRIGGER counters_guard BEFORE UPDATE ON counters
WHEN (NEW.revision <= OLD.revision AND NOT (NEW.revision = OLD.revision AND NEW.generation > OLD.generation
        AND NEW.leased = OLD.leased))
    OR NEW.key_uid IS NOT OLD.key_uid OR NEW.version IS NOT OLD.version
    OR NEW.leased < OLD.leased - 1048576
BEGIN SELECT RAISE(ABORT, 'counters: more was given back than one lease'); END;

-- Counts only grow.
CREATE TRIGGER usage_guard BEFORE UPDATE ON usage
WHEN (NEW.revision <= OLD.revision AND NOT (NEW.revision = OLD.revision AND NEW.generation > OLD.generation
        AND (NEW.protects, NEW.processes, NEW.rewraps, NEW.refusals)
            IS (OLD.protects, OLD.processes, OLD.rewraps, OLD.refusals)))
    OR NEW.key_uid IS NOT OLD.key_uid OR NEW.version IS NOT OLD.version
    OR NEW.protects < OLD.protects OR NEW.processes < OLD.processes OR NEW.rewraps < OLD.rewraps
    OR NEW.refusals < OLD.refusals
BEGIN SELECT RAISE(ABORT, 'usage: a count went back'); END;

CREATE TRIGGER manifests_guard BEFORE UPDATE ON manifests
WHEN NOT (NEW.revision > OLD.revision OR
        (NEW.generation > OLD.generation AND
         (NEW.tenant, NEW.revision, NEW.row_set) IS (OLD.tenant, OLD.revision, OLD.row_set)))
BEGIN SELECT RAISE(ABORT, 'manifests: the revision did not grow'); END;

CREATE TRIGGER keys_stay BEFORE DELETE ON keys BEGIN SELECT RAISE(ABORT, 'keys are never deleted'); END;
CREATE TRIGGER versions_stay BEFORE DELETE ON versions BEGIN SELECT RAISE(ABORT, 'versions are never deleted'); END;
CREATE TRIGGER consumers_stand BEFORE UPDATE ON consumers
WHEN NOT (NEW.generation > OLD.generation AND
        (NEW.key_uid, NEW.consumer_id, NEW.description, NEW.create_time, NEW.actor, NEW.revision)
        IS
        (OLD.key_uid, OLD.consumer_id, OLD.description, OLD.create_time, OLD.actor, OLD.revision))
BEGIN SELECT RAISE(ABORT, 'consumers are never changed'); END;
CREATE TRIGGER aliases_guard BEFORE UPDATE ON aliases
WHEN (NEW.revision <= OLD.revision AND NOT (NEW.revision = OLD.revision AND NEW.generation > OLD.generation AND
        (NEW.key_id, NEW.key_uid, NEW.update_time, NEW.actor, NEW.reason)
        IS
        (OLD.key_id, OLD.key_uid, OLD.update_time, OLD.actor, OLD.reason)))
    OR NEW.tenant IS NOT OLD.tenant OR NEW.alias_id IS NOT OLD.alias_id OR NEW.skeleton IS NOT OLD.skeleton
    OR NEW.create_time IS NOT OLD.create_time
BEGIN SELECT RAISE(ABORT, 'aliases: an immutable column changed or the revision did not grow'); END;
CREATE TRIGGER history_stands BEFORE UPDATE ON history
WHEN NOT (NEW.generation > OLD.generation AND
        (NEW.key_uid, NEW.version, NEW.revision, NEW.old_revision, NEW.time, NEW.from_state, NEW.to_state,
         NEW.detail, NEW.actor, NEW.reason)
        IS
        (OLD.key_uid, OLD.version, OLD.revision, OLD.old_revision, OLD.time, OLD.from_state, OLD.to_state,
         OLD.detail, OLD.actor, OLD.reason))
BEGIN SELECT RAISE(ABORT, 'history is never changed'); END;
CREATE TRIGGER history_stays BEFORE DELETE ON history BEGIN SELECT RAISE(ABORT, 'history is never deleted'); END;
CREATE TRIGGER retired_roots_stand BEFORE UPDATE ON retired_roots
BEGIN SELECT RAISE(ABORT, 'retired roots are never changed'); END;
CREATE TRIGGER retired_roots_stay BEFORE DELETE ON retired_roots
BEGIN SELECT RAISE(ABORT, 'retired roots are never deleted'); END;
CREATE TRIGGER roots_stay BEFORE DELETE ON roots BEGIN SELECT RAISE(ABORT, 'roots are never deleted'); END;

-- Open import jobs. The key that one is for may not be there yet. Rows are made and taken away, never changed.
CREATE TABLE import_jobs (
    id          BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    tenant      TEXT    NOT NULL CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    key_id      TEXT    NOT NULL CHECK (octet_length(key_id) BETWEEN 1 AND 63),
    key_uid     BLOB    NOT NULL CHECK (length(key_uid) = 16),
    method      TEXT    NOT NULL CHECK (octet_length(method) BETWEEN 1 AND 64),
    rsa_bits    INTEGER NOT NULL CHECK (rsa_bits IN (3072, 4096)),
    public_key  BLOB    NOT NULL CHECK (length(public_key) BETWEEN 1 AND 1024),
    create_time INTEGER NOT NULL,
    expire_time INTEGER NOT NULL CHECK (expire_time > create_time),
    actor       TEXT    NOT NULL CHECK (octet_length(actor) <= 2048),
    generation  INTEGER NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac         BLOB    NOT NULL CHECK (length(mac) = 32)
) STRICT, WITHOUT ROWID;

CREATE INDEX import_jobs_by_tenant ON import_jobs (tenant, id);
CREATE INDEX import_jobs_due ON import_jobs (expire_time, id);
CREATE TRIGGER import_jobs_stand BEFORE UPDATE ON import_jobs
WHEN NOT (NEW.generation > OLD.generation AND
        (NEW.id, NEW.tenant, NEW.key_id, NEW.key_uid, NEW.method, NEW.rsa_bits, NEW.public_key, NEW.create_time,
         NEW.expire_time, NEW.actor)
        IS
        (OLD.id, OLD.tenant, OLD.key_id, OLD.key_uid, OLD.method, OLD.rsa_bits, OLD.public_key, OLD.create_time,
         OLD.expire_time, OLD.actor))
BEGIN SELECT RAISE(ABORT, 'import jobs are never changed'); END;
