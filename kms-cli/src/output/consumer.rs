//! How consumers are shown.

use comfy_table::Table;
use kms_proto::v1;
use serde::Serialize;

use super::view::{facts, time_text};
use super::{View, plain_table};
use crate::terminal::harmless;

/// A consumer, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConsumerView {
    /// Name.
    pub name: String,
    /// Who that is, and whom to ask.
    pub description: String,
    /// When it was registered, RFC 3339.
    pub create_time: String,
    /// Who registered it.
    pub actor: String,
}

impl From<v1::Consumer> for ConsumerView {
    fn from(consumer: v1::Consumer) -> Self {
        let v1::Consumer { name, description, create_time, actor } = consumer;
        Self { name, description, create_time: time_text(create_time.as_ref()), actor }
    }
}

impl View for ConsumerView {
    fn table(&self) -> Table {
        facts(&[
            ("name", self.name.clone()),
            ("description", self.description.clone()),
            ("registered", self.create_time.clone()),
            ("by", self.actor.clone()),
        ])
    }
}

/// A list of consumers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConsumersView {
    /// The consumers, by id.
    pub consumers: Vec<ConsumerView>,
}

impl View for ConsumersView {
    fn table(&self) -> Table {
        let mut table = plain_table();
        table.set_header(["CONSUMER", "REGISTERED", "BY", "DESCRIPTION"]);
        for consumer in &self.consumers {
            let id = consumer.name.rsplit('/').next().unwrap_or_default();
            table.add_row([
                harmless(id),
                consumer.create_time.clone(),
                harmless(&consumer.actor),
                harmless(&consumer.description),
            ]);
        }
        table
    }
}
