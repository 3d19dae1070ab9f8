-- 0001: keys, versions, counters, manifests, roots, requests, intents.
--
-- The same rows, bounds and refusals as in the migration of this number of the other engine. Text lengths are in bytes and
-- repeat the bounds of kms-core: a row that breaks one is a defect of ours, and is refused here too. Times are milliseconds
-- since 1970, UTC; numbers are BIGINT, because they reach 2^32 - 1 at least. Text that rows are ordered by has the collation
-- "C": byte by byte, whatever the database's is. `mac` is the HMAC-SHA-256 of the row under root `mac` of `generation`.

CREATE TABLE roots (
    generation   BIGINT  NOT NULL PRIMARY KEY CHECK (generation BETWEEN 1 AND 4294967295),
    token_serial TEXT    NOT NULL CHECK (octet_length(token_serial) <= 64),
    wrap_id      BYTEA   NOT NULL CHECK (octet_length(wrap_id) = 16),
    wrap_check   BYTEA   NOT NULL CHECK (octet_length(wrap_check) <= 128),
    mac_id       BYTEA   NOT NULL CHECK (octet_length(mac_id) = 16),
    mac_check    BYTEA   NOT NULL CHECK (octet_length(mac_check) <= 128),
    mac          BYTEA   NOT NULL CHECK (octet_length(mac) = 32)
);

-- Root sets that nothing depends on any more. `generation` is that of the root which seals the row.
CREATE TABLE retired_roots (
    retired    BIGINT  NOT NULL PRIMARY KEY REFERENCES roots (generation),
    time       BIGINT  NOT NULL,
    actor      TEXT    NOT NULL CHECK (octet_length(actor) <= 2048),
    reason     TEXT    NOT NULL CHECK (octet_length(reason) <= 256),
    generation BIGINT  NOT NULL CHECK (generation > retired),
    mac        BYTEA   NOT NULL CHECK (octet_length(mac) = 32)
);

-- The primary is a column of the key, so a key has exactly one; the deferred reference makes it an existing version.
CREATE TABLE keys (
    uid             BYTEA   NOT NULL PRIMARY KEY CHECK (octet_length(uid) = 16),
    tenant          TEXT    COLLATE "C" NOT NULL CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    key_id          TEXT    COLLATE "C" NOT NULL CHECK (octet_length(key_id) BETWEEN 1 AND 63),
    purpose         TEXT    NOT NULL CHECK (purpose IN ('WRAP')),
    protection      TEXT    NOT NULL CHECK (protection IN ('HSM_WRAPPED', 'HSM_RESIDENT')),
    state           TEXT    NOT NULL CHECK (state IN ('ENABLED', 'DISABLED', 'DESTROY_SCHEDULED', 'DESTROYED')),
    owner           TEXT    NOT NULL CHECK (octet_length(owner) <= 256),
    sensitivity     TEXT    NOT NULL CHECK (sensitivity IN ('LOW', 'MEDIUM', 'HIGH')),
    usage           TEXT    NOT NULL CHECK (octet_length(usage) <= 1024),
    cryptoperiod_s  BIGINT  NOT NULL CHECK (cryptoperiod_s BETWEEN 1 AND 315619200),
    recipient_usage_period_s BIGINT NOT NULL CHECK (recipient_usage_period_s BETWEEN cryptoperiod_s AND 946684800),
    labels          TEXT    NOT NULL CHECK (labels::json IS NOT NULL AND octet_length(labels) <= 65536),
    create_time     BIGINT  NOT NULL,
    update_time     BIGINT  NOT NULL,
    revision        BIGINT  NOT NULL CHECK (revision >= 1),
    primary_version BIGINT  NOT NULL CHECK (primary_version BETWEEN 1 AND latest_version),
    latest_version  BIGINT  NOT NULL CHECK (latest_version <= 4294967295),
    consumer_count  BIGINT  NOT NULL CHECK (consumer_count BETWEEN 0 AND 1000),
    -- Rotation by period, and when the primary gives way.
    rotation_period_s BIGINT CHECK (rotation_period_s BETWEEN 1 AND 315619200),
    rotate_time       BIGINT,
    -- A planned destruction of the whole key: when, in spite of what, and whether versions are being destroyed.
    destroy_time              BIGINT,
    destroy_despite_consumers BOOLEAN,
    destroy_despite_use       BOOLEAN,
    destroy_begun             BOOLEAN,
    generation      BIGINT  NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac             BYTEA   NOT NULL CHECK (octet_length(mac) = 32),
    CHECK ((rotation_period_s IS NULL) = (rotate_time IS NULL)),
    CHECK ((destroy_time IS NULL) = (state <> 'DESTROY_SCHEDULED')),
    CHECK ((destroy_time IS NULL) = (destroy_despite_consumers IS NULL)),
    CHECK ((destroy_time IS NULL) = (destroy_despite_use IS NULL)),
    CHECK ((destroy_time IS NULL) = (destroy_begun IS NULL)),
    UNIQUE (tenant, key_id)
);

CREATE INDEX keys_by_age ON keys (tenant, create_time, uid);
CREATE INDEX keys_to_rotate ON keys (rotate_time, uid) WHERE rotate_time IS NOT NULL;
CREATE INDEX keys_to_destroy ON keys (destroy_time, uid) WHERE destroy_time IS NOT NULL;

CREATE TABLE versions (
    key_uid         BYTEA   NOT NULL REFERENCES keys (uid),
    version         BIGINT  NOT NULL CHECK (version BETWEEN 1 AND 4294967295),
    state           TEXT    NOT NULL CHECK (state IN ('PRE_ACTIVATION', 'ACTIVE', 'SUSPENDED', 'DEACTIVATED',
                                                      'COMPROMISED', 'DESTROY_SCHEDULED', 'DESTROYED')),
    material_kind   TEXT    NOT NULL CHECK (material_kind IN ('wrapped', 'resident')),
    material        BYTEA   NOT NULL CHECK (CASE material_kind WHEN 'resident' THEN octet_length(material) = 16
                                            ELSE octet_length(material) BETWEEN 24 AND 512 OR state = 'DESTROYED' END),
    check_blob      BYTEA   NOT NULL CHECK (octet_length(check_blob) BETWEEN 12 AND 256),
    origin          TEXT    NOT NULL CHECK (origin IN ('GENERATED', 'IMPORTED')),
    create_time     BIGINT  NOT NULL,
    state_time      BIGINT  NOT NULL,
    state_reason    TEXT    NOT NULL CHECK (octet_length(state_reason) <= 256),
    state_actor     TEXT    NOT NULL CHECK (octet_length(state_actor) <= 2048),
    -- When it became ACTIVE, or in PRE_ACTIVATION when it is to.
    activate_time   BIGINT,
    deactivate_time BIGINT,
    -- A planned destruction, and the state that cancelling it leads back to.
    destroy_time    BIGINT,
    destroy_returns TEXT    CHECK (destroy_returns IN ('DEACTIVATED', 'COMPROMISED')),
    -- Whether it is made although consumers of the key are registered.
    destroy_despite_consumers BOOLEAN NOT NULL,
    destroy_despite_use       BOOLEAN NOT NULL,
    revision        BIGINT  NOT NULL CHECK (revision >= 1),
    generation      BIGINT  NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac             BYTEA   NOT NULL CHECK (octet_length(mac) = 32),
    PRIMARY KEY (key_uid, version),
    CHECK (activate_time IS NOT NULL OR state NOT IN ('ACTIVE', 'SUSPENDED', 'DEACTIVATED')),
    CHECK ((destroy_time IS NULL) = (destroy_returns IS NULL)),
    CHECK ((destroy_time IS NULL) = (state <> 'DESTROY_SCHEDULED'))
);

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
    key_uid     BYTEA   NOT NULL REFERENCES keys (uid),
    consumer_id TEXT    COLLATE "C" NOT NULL CHECK (octet_length(consumer_id) BETWEEN 1 AND 63),
    description TEXT    NOT NULL CHECK (octet_length(description) <= 256),
    create_time BIGINT  NOT NULL,
    actor       TEXT    NOT NULL CHECK (octet_length(actor) <= 2048),
    revision    BIGINT  NOT NULL CHECK (revision >= 1),
    generation  BIGINT  NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac         BYTEA   NOT NULL CHECK (octet_length(mac) = 32),
    PRIMARY KEY (key_uid, consumer_id)
);

-- Names that point to a key. `skeleton` is what the id looks like (kms-core/src/alias.rs). `revision` is that of the tenant's
-- manifest with the row, so no two aliases of a tenant have the same, at any time.
CREATE TABLE aliases (
    tenant      TEXT    COLLATE "C" NOT NULL CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    alias_id    TEXT    COLLATE "C" NOT NULL CHECK (octet_length(alias_id) BETWEEN 1 AND 63),
    skeleton    TEXT    COLLATE "C" NOT NULL CHECK (octet_length(skeleton) BETWEEN 1 AND 63),
    key_id      TEXT    COLLATE "C" NOT NULL CHECK (octet_length(key_id) BETWEEN 1 AND 63),
    key_uid     BYTEA   NOT NULL REFERENCES keys (uid),
    create_time BIGINT  NOT NULL,
    update_time BIGINT  NOT NULL,
    actor       TEXT    NOT NULL CHECK (octet_length(actor) <= 2048),
    reason      TEXT    NOT NULL CHECK (octet_length(reason) <= 256),
    revision    BIGINT  NOT NULL CHECK (revision >= 1),
    generation  BIGINT  NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac         BYTEA   NOT NULL CHECK (octet_length(mac) = 32),
    PRIMARY KEY (tenant, alias_id),
    UNIQUE (tenant, skeleton),
    UNIQUE (tenant, revision)
);

CREATE INDEX aliases_of_key ON aliases (key_uid, revision);

-- What happened to a key: one entry a change, written with it. Version 0 stands for the key itself.
CREATE TABLE history (
    key_uid      BYTEA   NOT NULL REFERENCES keys (uid) DEFERRABLE INITIALLY DEFERRED,
    version      BIGINT  NOT NULL CHECK (version BETWEEN 0 AND 4294967295),
    revision     BIGINT  NOT NULL CHECK (revision > old_revision),
    old_revision BIGINT  NOT NULL CHECK (old_revision >= 0),
    time         BIGINT  NOT NULL,
    from_state   TEXT,
    to_state     TEXT,
    detail       TEXT    CHECK (octet_length(detail) <= 262144),
    actor        TEXT    NOT NULL CHECK (octet_length(actor) <= 2048),
    reason       TEXT    NOT NULL CHECK (octet_length(reason) <= 256),
    generation   BIGINT  NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac          BYTEA   NOT NULL CHECK (octet_length(mac) = 32),
    PRIMARY KEY (key_uid, version, revision),
    CHECK ((version = 0) = (to_state IS NULL)),
    CHECK ((version = 0) = (detail IS NOT NULL)),
    CHECK (version <> 0 OR from_state IS NULL)
);

CREATE INDEX history_by_time ON history (key_uid, time, version, revision);

-- 2^32 invocations are the limit of a version (SP 800-38D 8.3).
CREATE TABLE counters (
    key_uid    BYTEA   NOT NULL,
    version    BIGINT  NOT NULL,
    leased     BIGINT  NOT NULL CHECK (leased BETWEEN 0 AND 4294967296),
    revision   BIGINT  NOT NULL CHECK (revision >= 1),
    generation BIGINT  NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac        BYTEA   NOT NULL CHECK (octet_length(mac) = 32),
    PRIMARY KEY (key_uid, version),
    FOREIGN KEY (key_uid, version) REFERENCES versions (key_uid, version)
);

-- How versions were used: evidence for retiring them, written once a minute.
CREATE TABLE usage (
    key_uid       BYTEA   NOT NULL,
    version       BIGINT  NOT NULL,
    protects      BIGINT  NOT NULL CHECK (protects >= 0),
    first_protect BIGINT,
    last_protect  BIGINT,
    processes     BIGINT  NOT NULL CHECK (processes >= 0),
    first_process BIGINT,
    last_process  BIGINT,
    rewraps       BIGINT  NOT NULL CHECK (rewraps >= 0),
    first_rewrap  BIGINT,
    last_rewrap   BIGINT,
    -- Attempts while the key is disabled, or a destruction is planned.
    refusals      BIGINT  NOT NULL CHECK (refusals >= 0),
    first_refusal BIGINT,
    last_refusal  BIGINT,
    revision      BIGINT  NOT NULL CHECK (revision >= 1),
    generation    BIGINT  NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac           BYTEA   NOT NULL CHECK (octet_length(mac) = 32),
    PRIMARY KEY (key_uid, version),
    FOREIGN KEY (key_uid, version) REFERENCES versions (key_uid, version),
    CHECK ((first_protect IS NULL) = (last_protect IS NULL)),
    CHECK ((first_process IS NULL) = (last_process IS NULL)),
    CHECK ((first_rewrap IS NULL) = (last_rewrap IS NULL)),
    CHECK ((first_refusal IS NULL) = (last_refusal IS NULL))
);

CREATE TABLE manifests (
    tenant     TEXT    COLLATE "C" NOT NULL PRIMARY KEY CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    revision   BIGINT  NOT NULL CHECK (revision >= 1),
    row_set    BYTEA   NOT NULL CHECK (octet_length(row_set) = 2048),
    generation BIGINT  NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac        BYTEA   NOT NULL CHECK (octet_length(mac) = 32)
);

CREATE TABLE requests (
    tenant       TEXT    COLLATE "C" NOT NULL CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    principal    TEXT    COLLATE "C" NOT NULL CHECK (octet_length(principal) <= 2048),
    request_id   BYTEA   NOT NULL CHECK (octet_length(request_id) = 16),
    method       TEXT    NOT NULL CHECK (octet_length(method) <= 256),
    request_hash BYTEA   NOT NULL CHECK (octet_length(request_hash) = 32),
    result       BYTEA   NOT NULL CHECK (octet_length(result) <= 65536),
    time         BIGINT  NOT NULL,
    generation   BIGINT  NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac          BYTEA   NOT NULL CHECK (octet_length(mac) = 32),
    PRIMARY KEY (principal, request_id)
);

CREATE INDEX requests_by_time ON requests (time);

-- How many requests of a tenant are remembered, kept by the triggers below: counting them takes longer than a change does.
-- It has no MAC: it bounds the disk, which whoever edits the database can fill anyhow.
CREATE TABLE request_counts (
    tenant     TEXT    COLLATE "C" NOT NULL PRIMARY KEY CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    remembered BIGINT  NOT NULL CHECK (remembered >= 0)
);

CREATE TABLE intents (
    id          BYTEA   NOT NULL UNIQUE CHECK (octet_length(id) = 16),
    kind        TEXT    NOT NULL CHECK (octet_length(kind) BETWEEN 1 AND 64),
    principal   TEXT    COLLATE "C" NOT NULL CHECK (octet_length(principal) <= 2048),
    tenant      TEXT    COLLATE "C" NOT NULL CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    key_id      TEXT    COLLATE "C" NOT NULL CHECK (octet_length(key_id) BETWEEN 1 AND 63),
    key_uid     BYTEA   NOT NULL CHECK (octet_length(key_uid) = 16),
    version     BIGINT  NOT NULL CHECK (version BETWEEN 1 AND 4294967295),
    protection  TEXT    NOT NULL CHECK (protection IN ('HSM_WRAPPED', 'HSM_RESIDENT')),
    resident_id BYTEA   NOT NULL CHECK (octet_length(resident_id) = 16),
    time        BIGINT  NOT NULL,
    -- The manifest as the mutation left it, once it is committed.
    applied_revision BIGINT CHECK (applied_revision >= 1),
    applied_digest   TEXT    CHECK (octet_length(applied_digest) = 64),
    generation  BIGINT  NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac         BYTEA   NOT NULL CHECK (octet_length(mac) = 32),
    sequence    BIGINT  NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    CHECK ((applied_revision IS NULL) = (applied_digest IS NULL))
);

CREATE TABLE probe (
    id   BIGINT  NOT NULL PRIMARY KEY CHECK (id = 1),
    time BIGINT  NOT NULL
);

-- Open import jobs. The key that one is for may not be there yet. Rows are made and taken away, never changed.
CREATE TABLE import_jobs (
    id          BYTEA   NOT NULL PRIMARY KEY CHECK (octet_length(id) = 16),
    tenant      TEXT    COLLATE "C" NOT NULL CHECK (octet_length(tenant) BETWEEN 1 AND 63),
    key_id      TEXT    COLLATE "C" NOT NULL CHECK (octet_length(key_id) BETWEEN 1 AND 63),
    key_uid     BYTEA   NOT NULL CHECK (octet_length(key_uid) = 16),
    method      TEXT    NOT NULL CHECK (octet_length(method) BETWEEN 1 AND 64),
    rsa_bits    BIGINT  NOT NULL CHECK (rsa_bits IN (3072, 4096)),
    public_key  BYTEA   NOT NULL CHECK (octet_length(public_key) BETWEEN 1 AND 1024),
    create_time BIGINT  NOT NULL,
    expire_time BIGINT  NOT NULL CHECK (expire_time > create_time),
    actor       TEXT    NOT NULL CHECK (octet_length(actor) <= 2048),
    generation  BIGINT  NOT NULL CHECK (generation BETWEEN 1 AND 4294967295),
    mac         BYTEA   NOT NULL CHECK (octet_length(mac) = 32)
);

CREATE INDEX import_jobs_by_tenant ON import_jobs (tenant, id);
CREATE INDEX import_jobs_due ON import_jobs (expire_time, id);

ALTER TABLE keys ADD FOREIGN KEY (uid, primary_version) REFERENCES versions (key_uid, version)
    DEFERRABLE INITIALLY DEFERRED;

-- Rows that are replaced again and again stay in their page. A row set does not compress, and fits into it.
ALTER TABLE manifests SET (fillfactor = 50);
ALTER TABLE manifests ALTER COLUMN row_set SET STORAGE MAIN;
ALTER TABLE counters SET (fillfactor = 50);
ALTER TABLE usage SET (fillfactor = 50);
ALTER TABLE request_counts SET (fillfactor = 50);

-- Which server was the last to hold the database. It has no MAC: it only keeps two apart.
CREATE TABLE holder (
    id       BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    instance BYTEA  NOT NULL CHECK (octet_length(instance) = 16)
);

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', TG_ARGV[0];
END $$;

CREATE FUNCTION count_remembered() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO request_counts AS counts (tenant, remembered) VALUES (NEW.tenant, 1)
    ON CONFLICT (tenant) DO UPDATE SET remembered = counts.remembered + 1;
    RETURN NULL;
END $$;

CREATE FUNCTION count_forgotten() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE request_counts AS counts SET remembered = counts.remembered - gone.number
    FROM (SELECT tenant, count(*) AS number FROM forgotten GROUP BY tenant) AS gone
    WHERE counts.tenant = gone.tenant;
    RETURN NULL;
END $$;

CREATE TRIGGER requests_remembered AFTER INSERT ON requests FOR EACH ROW EXECUTE FUNCTION count_remembered();
CREATE TRIGGER requests_forgotten AFTER DELETE ON requests REFERENCING OLD TABLE AS forgotten
FOR EACH STATEMENT EXECUTE FUNCTION count_forgotten();

-- A revision only grows, and what identifies a row never changes. Only a newer root seals a row anew at the revision it has,
-- and nothing of what it says changes then.
CREATE TRIGGER keys_guard BEFORE UPDATE ON keys FOR EACH ROW
WHEN ((NEW.revision <= OLD.revision AND NOT (NEW.revision = OLD.revision AND NEW.generation > OLD.generation AND
        (NEW.state, NEW.owner, NEW.sensitivity, NEW.usage, NEW.cryptoperiod_s, NEW.recipient_usage_period_s, NEW.labels, NEW.update_time,
         NEW.primary_version, NEW.latest_version, NEW.consumer_count, NEW.rotation_period_s,
         NEW.rotate_time, NEW.destroy_time, NEW.destroy_despite_consumers, NEW.destroy_despite_use,
         NEW.destroy_begun)
        IS NOT DISTINCT FROM
        (OLD.state, OLD.owner, OLD.sensitivity, OLD.usage, OLD.cryptoperiod_s, OLD.recipient_usage_period_s, OLD.labels, OLD.update_time,
         OLD.primary_version, OLD.latest_version, OLD.consumer_count, OLD.rotation_period_s,
         OLD.rotate_time, OLD.destroy_time, OLD.destroy_despite_consumers, OLD.destroy_despite_use,
         OLD.destroy_begun)))
    OR NEW.uid IS DISTINCT FROM OLD.uid OR NEW.tenant IS DISTINCT FROM OLD.tenant
    OR NEW.key_id IS DISTINCT FROM OLD.key_id OR NEW.purpose IS DISTINCT FROM OLD.purpose OR NEW.protection IS DISTINCT FROM OLD.protection
    OR NEW.create_time IS DISTINCT FROM OLD.create_time OR NEW.latest_version < OLD.latest_version
    -- Of a tombstone aliases may still go: nothing but revision and time of the change changes with them.
    OR (OLD.state = 'DESTROYED' AND
        (NEW.state, NEW.owner, NEW.sensitivity, NEW.usage, NEW.cryptoperiod_s, NEW.recipient_usage_period_s, NEW.labels,
         NEW.primary_version, NEW.latest_version, NEW.consumer_count, NEW.rotation_period_s, NEW.rotate_time)
        IS DISTINCT FROM
        (OLD.state, OLD.owner, OLD.sensitivity, OLD.usage, OLD.cryptoperiod_s, OLD.recipient_usage_period_s, OLD.labels,
         OLD.primary_version, OLD.latest_version, OLD.consumer_count, OLD.rotation_period_s, OLD.rotate_time))
    OR (OLD.destroy_begun AND NEW.state <> 'DESTROYED'
        AND (NEW.destroy_begun, NEW.destroy_time) IS DISTINCT FROM (TRUE, OLD.destroy_time)))
EXECUTE FUNCTION refuse('keys: an immutable column changed or the revision did not grow');

CREATE TRIGGER versions_guard BEFORE UPDATE ON versions FOR EACH ROW
WHEN ((NEW.revision <= OLD.revision AND NOT (NEW.revision = OLD.revision AND NEW.generation > OLD.generation AND
        (NEW.state, NEW.material_kind, NEW.check_blob, NEW.state_time, NEW.state_reason, NEW.state_actor,
         NEW.activate_time, NEW.deactivate_time, NEW.destroy_time, NEW.destroy_returns,
         NEW.destroy_despite_consumers, NEW.destroy_despite_use)
        IS NOT DISTINCT FROM
        (OLD.state, OLD.material_kind, OLD.check_blob, OLD.state_time, OLD.state_reason, OLD.state_actor,
         OLD.activate_time, OLD.deactivate_time, OLD.destroy_time, OLD.destroy_returns,
         OLD.destroy_despite_consumers, OLD.destroy_despite_use)))
    OR NEW.key_uid IS DISTINCT FROM OLD.key_uid OR NEW.version IS DISTINCT FROM OLD.version
    OR NEW.create_time IS DISTINCT FROM OLD.create_time OR NEW.origin IS DISTINCT FROM OLD.origin
    OR (OLD.state = 'DESTROYED' AND NEW.revision > OLD.revision)
    OR (OLD.state = 'COMPROMISED' AND NEW.state NOT IN ('COMPROMISED', 'DESTROY_SCHEDULED', 'DESTROYED')))
EXECUTE FUNCTION refuse('versions: an immutable column changed or the revision did not grow');

-- A counter gives back at most the unused rest of one lease, 2^20 at most.
CREATE TRIGGER counters_guard BEFORE UPDATE ON counters FOR EACH ROW
WHEN ((NEW.revision <= OLD.revision AND NOT (NEW.revision = OLD.revision AND NEW.generation > OLD.generation
        AND NEW.leased = OLD.leased))
    OR NEW.key_uid IS DISTINCT FROM OLD.key_uid OR NEW.version IS DISTINCT FROM OLD.version
    OR NEW.leased < OLD.leased - 1048576)
EXECUTE FUNCTION refuse('counters: more was given back than one lease');

-- Counts only grow.
CREATE TRIGGER usage_guard BEFORE UPDATE ON usage FOR EACH ROW
WHEN ((NEW.revision <= OLD.revision AND NOT (NEW.revision = OLD.revision AND NEW.generation > OLD.generation
        AND (NEW.protects, NEW.processes, NEW.rewraps, NEW.refusals)
            IS NOT DISTINCT FROM (OLD.protects, OLD.processes, OLD.rewraps, OLD.refusals)))
    OR NEW.key_uid IS DISTINCT FROM OLD.key_uid OR NEW.version IS DISTINCT FROM OLD.version
    OR NEW.protects < OLD.protects OR NEW.processes < OLD.processes OR NEW.rewraps < OLD.rewraps
    OR NEW.refusals < OLD.refusals)
EXECUTE FUNCTION refuse('usage: a count went back');

CREATE TRIGGER manifests_guard BEFORE UPDATE ON manifests FOR EACH ROW
WHEN (NOT (NEW.revision > OLD.revision OR
        (NEW.generation > OLD.generation AND
         (NEW.tenant, NEW.revision, NEW.row_set) IS NOT DISTINCT FROM (OLD.tenant, OLD.revision, OLD.row_set))))
EXECUTE FUNCTION refuse('manifests: the revision did not grow');

CREATE TRIGGER keys_stay BEFORE DELETE ON keys FOR EACH ROW EXECUTE FUNCTION refuse('keys are never deleted');

CREATE TRIGGER versions_stay BEFORE DELETE ON versions FOR EACH ROW EXECUTE FUNCTION refuse('versions are never deleted');

CREATE TRIGGER consumers_stand BEFORE UPDATE ON consumers FOR EACH ROW
WHEN (NOT (NEW.generation > OLD.generation AND
        (NEW.key_uid, NEW.consumer_id, NEW.description, NEW.create_time, NEW.actor, NEW.revision)
        IS NOT DISTINCT FROM
        (OLD.key_uid, OLD.consumer_id, OLD.description, OLD.create_time, OLD.actor, OLD.revision)))
EXECUTE FUNCTION refuse('consumers are never changed');

CREATE TRIGGER aliases_guard BEFORE UPDATE ON aliases FOR EACH ROW
WHEN ((NEW.revision <= OLD.revision AND NOT (NEW.revision = OLD.revision AND NEW.generation > OLD.generation AND
        (NEW.key_id, NEW.key_uid, NEW.update_time, NEW.actor, NEW.reason)
        IS NOT DISTINCT FROM
        (OLD.key_id, OLD.key_uid, OLD.update_time, OLD.actor, OLD.reason)))
    OR NEW.tenant IS DISTINCT FROM OLD.tenant OR NEW.alias_id IS DISTINCT FROM OLD.alias_id
    OR NEW.skeleton IS DISTINCT FROM OLD.skeleton OR NEW.create_time IS DISTINCT FROM OLD.create_time)
EXECUTE FUNCTION refuse('aliases: an immutable column changed or the revision did not grow');

CREATE TRIGGER history_stands BEFORE UPDATE ON history FOR EACH ROW
WHEN (NOT (NEW.generation > OLD.generation AND
        (NEW.key_uid, NEW.version, NEW.revision, NEW.old_revision, NEW.time, NEW.from_state, NEW.to_state,
         NEW.detail, NEW.actor, NEW.reason)
        IS NOT DISTINCT FROM
        (OLD.key_uid, OLD.version, OLD.revision, OLD.old_revision, OLD.time, OLD.from_state, OLD.to_state,
         OLD.detail, OLD.actor, OLD.reason)))
EXECUTE FUNCTION refuse('history is never changed');

CREATE TRIGGER history_stays BEFORE DELETE ON history FOR EACH ROW EXECUTE FUNCTION refuse('history is never deleted');
CREATE TRIGGER retired_roots_stand BEFORE UPDATE ON retired_roots FOR EACH ROW
EXECUTE FUNCTION refuse('retired roots are never changed');
CREATE TRIGGER retired_roots_stay BEFORE DELETE ON retired_roots FOR EACH ROW
EXECUTE FUNCTION refuse('retired roots are never deleted');

CREATE TRIGGER roots_stay BEFORE DELETE ON roots FOR EACH ROW EXECUTE FUNCTION refuse('roots are never deleted');

CREATE TRIGGER import_jobs_stand BEFORE UPDATE ON import_jobs FOR EACH ROW
WHEN (NOT (NEW.generation > OLD.generation AND
        (NEW.id, NEW.tenant, NEW.key_id, NEW.key_uid, NEW.method, NEW.rsa_bits, NEW.public_key, NEW.create_time,
         NEW.expire_time, NEW.actor)
        IS NOT DISTINCT FROM
        (OLD.id, OLD.tenant, OLD.key_id, OLD.key_uid, OLD.method, OLD.rsa_bits, OLD.public_key, OLD.create_time,
         OLD.expire_time, OLD.actor)))
EXECUTE FUNCTION refuse('import jobs are never changed');
