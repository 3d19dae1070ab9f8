//! A report for people.

use std::fmt::Write as _;

use super::{Finding, Report};

/// Writes a report as text: a line a disagreement, then what was verified, then the verdict.
pub fn table(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        line(&mut text, finding);
    }
    let Report { agrees, log, tenants, tenants_not_in_log, keys, versions, counters, .. } = report;
    let Report {
        usage,
        history,
        consumers,
        aliases,
        import_jobs,
        intents,
        requests,
        findings_left_out,
        accept_code,
        ..
    } = report;
    if *findings_left_out > 0 {
        let _ = writeln!(text, "{findings_left_out} more are left out");
    }
    let _ = writeln!(
        text,
        "verified {tenants} tenants, {keys} keys, {versions} versions, {counters} counters, \
         {consumers} consumers, {aliases} aliases, {import_jobs} import jobs, {history} entries of histories, {usage} rows of uses, {intents} intents, {requests} requests"
    );
    if let Some(log) = log {
        let first = log.first.unwrap_or_default();
        let _ = write!(text, "log: {} entries, {first} to {}", log.entries, log.last);
        if log.torn_bytes > 0 {
            let _ = write!(text, ", and {} bytes of a write that was cut off", log.torn_bytes);
        }
        let _ = writeln!(text);
    }
    if *tenants_not_in_log > 0 {
        let _ = writeln!(
            text,
            "of {tenants_not_in_log} tenants the log has no manifest: compared with nothing"
        );
    }
    if let Some(code) = accept_code {
        let _ = writeln!(
            text,
            "when this database is meant, start once with --accept-restored-store {code}"
        );
    }
    let verdict = if *agrees {
        "the database agrees with its MACs, its manifests and the log".to_owned()
    } else {
        format!("the database does not agree: {} disagreements", report.disagreements())
    };
    let _ = writeln!(text, "{verdict}");
    text
}

fn line(text: &mut String, finding: &Finding) {
    let Finding { tenant, row, key_uid, key_version, detail } = finding;
    if let Some(tenant) = tenant {
        let _ = write!(text, "tenant {tenant} ");
    }
    let _ = write!(text, "{row}");
    if let Some(uid) = key_uid {
        let _ = write!(text, " of key {uid}");
    }
    if let Some(version) = key_version {
        let _ = write!(text, " version {version}");
    }
    let _ = writeln!(text, ": {detail}");
}
