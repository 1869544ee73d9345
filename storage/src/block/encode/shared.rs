//! Resources and scopes: what spans share.
//!
//! ```text
//!  message ─ cache by bytes ─► converted: numbers of its strings, sorted attributes, class ─► written wherever a row needs it
//! ```
//!
//! They repeat in every trace, so each is converted once per row group. Those that are equal by §8.6 of block-format.md have one class,
//! whatever their bytes.

use std::{borrow::Cow, collections::BTreeMap};

use super::{
    super::{
        attributes::{self, AttributeLeaves, Coded, Value},
        columns::{Columns, Dictionary},
    },
    Encoder, Leaves, RESOURCE, SCOPE,
};
use crate::otlp::{
    WireError,
    wire::{Fields, Value as Wire},
};

/// A resource, converted.
#[derive(Debug)]
pub(super) struct Resource {
    /// Equal for resources that are equal by §8.6.
    pub(super) class: u32,
    /// Number of the service's name in its leaf.
    pub(super) service: u32,
    /// The same of the first string attribute `service.name`, which root spans show; in `RootServiceName`.
    pub(super) root_service: u32,
    pub(super) leaves: Vec<(Dictionary, u32)>,
    pub(super) attributes: Vec<(u32, Coded)>,
    pub(super) dropped: i64,
    pub(super) estimate: usize,
}

/// A scope, converted.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) class: u32,
    pub(super) name: u32,
    pub(super) version: u32,
    pub(super) attributes: Vec<(u32, Coded)>,
    pub(super) dropped: i64,
}

impl Encoder {
    /// The converted resource of a `Resource` message.
    pub(super) fn resource(&mut self, message: &[u8]) -> Result<u32, WireError> {
        let (found, new) = self.resource_cache.intern(message);
        if !new {
            return Ok(found);
        }
        let leaves = &self.leaves;
        let columns = &mut self.columns;
        let mut service: Option<Cow<'_, [u8]>> = None;
        let mut root_service: Option<Cow<'_, [u8]>> = None;
        let mut optional: BTreeMap<Dictionary, u32> = BTreeMap::new();
        let mut generic = Vec::new();
        let (mut dropped, mut count) = (0, 0);
        for field in Fields::new(message) {
            let field = field?;
            match (field.number, field.value) {
                (1, Wire::Bytes(attribute)) => {
                    count += 1;
                    let (key, value) = attributes::read(attribute)?;
                    let fixed = leaves.resource_fixed.iter().find(|(name, _)| name.as_bytes() == key).map(|(_, leaf)| *leaf);
                    let own =
                        fixed.or_else(|| self.resource_dedicated.iter().find(|(name, _)| name.as_bytes() == key).map(|(_, leaf)| *leaf));
                    match (value, own) {
                        (Value::Text(text), _) if key == b"service.name" => {
                            root_service.get_or_insert_with(|| text.clone());
                            service = Some(text);
                        }
                        (Value::Text(text), Some(leaf)) => {
                            let code = columns.code(leaf, &text);
                            optional.insert(leaf, code);
                        }
                        (value, _) => generic.push((key, leaves.resource_attributes.code(columns, value))),
                    }
                }
                (2, Wire::Varint(value)) => dropped = value as u32 as i32,
                _ => {}
            }
        }
        let service = columns.code(leaves.service, service.as_deref().unwrap_or_default());
        let root_service = columns.code(leaves.root_service, root_service.as_deref().unwrap_or_default());
        let attributes = coded(columns, &leaves.resource_attributes, generic);
        let mut identity = Vec::new();
        identity.extend_from_slice(&service.to_le_bytes());
        identity.extend_from_slice(&(optional.len() as u32).to_le_bytes());
        for (leaf, code) in &optional {
            let slot =
                leaves.resource_fixed.iter().map(|(_, l)| l).chain(self.resource_dedicated.iter().map(|(_, l)| l)).position(|l| l == leaf);
            identity.extend_from_slice(&(slot.unwrap_or(usize::MAX) as u32).to_le_bytes());
            identity.extend_from_slice(&code.to_le_bytes());
        }
        identify(&attributes, &mut identity);
        let (class, _) = self.resource_classes.intern(&identity);
        let leaves = optional.into_iter().collect();
        let resource = Resource { class, service, root_service, leaves, attributes, dropped: dropped.into(), estimate: 10 + 7 * count };
        self.resources.push(resource);
        Ok(found)
    }

    /// The converted scope of an `InstrumentationScope` message.
    pub(super) fn scope(&mut self, message: &[u8]) -> Result<u32, WireError> {
        let (found, new) = self.scope_cache.intern(message);
        if !new {
            return Ok(found);
        }
        let leaves = &self.leaves;
        let columns = &mut self.columns;
        let (mut name, mut version): (&[u8], &[u8]) = (&[], &[]);
        let mut generic = Vec::new();
        let mut dropped = 0;
        for field in Fields::new(message) {
            let field = field?;
            match (field.number, field.value) {
                (1, Wire::Bytes(text)) => name = text,
                (2, Wire::Bytes(text)) => version = text,
                (3, Wire::Bytes(attribute)) => {
                    let (key, value) = attributes::read(attribute)?;
                    generic.push((key, leaves.scope_attributes.code(columns, value)));
                }
                (4, Wire::Varint(value)) => dropped = value as u32 as i32,
                _ => {}
            }
        }
        let name = columns.code(leaves.scope_name, name);
        let version = columns.code(leaves.scope_version, version);
        let attributes = coded(columns, &leaves.scope_attributes, generic);
        let mut identity = Vec::new();
        identity.extend_from_slice(&name.to_le_bytes());
        identity.extend_from_slice(&version.to_le_bytes());
        identify(&attributes, &mut identity);
        let (class, _) = self.scope_classes.intern(&identity);
        self.scopes.push(Scope { class, name, version, attributes, dropped: dropped.into() });
        Ok(found)
    }
}

/// Sorts attributes by key, those of equal keys by value, and numbers the keys.
fn coded(columns: &mut Columns, leaves: &AttributeLeaves, mut generic: Vec<(&[u8], Coded)>) -> Vec<(u32, Coded)> {
    generic.sort_by_cached_key(|(key, value)| {
        let mut identity = Vec::new();
        value.identity(&mut identity);
        (key.to_vec(), identity)
    });
    generic.into_iter().map(|(key, value)| (leaves.key(columns, key), value)).collect()
}

fn identify(attributes: &[(u32, Coded)], out: &mut Vec<u8>) {
    for (key, value) in attributes {
        out.extend_from_slice(&key.to_le_bytes());
        value.identity(out);
    }
}

/// Writes a resource as the next of its row.
pub(super) fn write_resource(columns: &mut Columns, leaves: &Leaves, resource: &Resource, repetition: u8) {
    columns.enter(leaves.resources, repetition, RESOURCE);
    let latest = columns.latest(leaves.resources);
    write_attributes(columns, &leaves.resource_attributes, &resource.attributes, repetition, RESOURCE);
    columns.push_integer(leaves.resource_dropped, resource.dropped);
    columns.push_code(leaves.service, resource.service);
    for &(leaf, code) in &resource.leaves {
        columns.push_optional_code(leaf, latest, code);
    }
}

/// Writes a scope as the next of its resource.
pub(super) fn write_scope(columns: &mut Columns, leaves: &Leaves, scope: &Scope, repetition: u8) {
    columns.enter(leaves.scopes, repetition, SCOPE);
    columns.push_code(leaves.scope_name, scope.name);
    columns.push_code(leaves.scope_version, scope.version);
    write_attributes(columns, &leaves.scope_attributes, &scope.attributes, repetition, SCOPE);
    columns.push_integer(leaves.scope_dropped, scope.dropped);
}

fn write_attributes(columns: &mut Columns, leaves: &AttributeLeaves, attributes: &[(u32, Coded)], repetition: u8, level: u8) {
    if attributes.is_empty() {
        leaves.none(columns, repetition, level);
    }
    for (index, (key, value)) in attributes.iter().enumerate() {
        leaves.push_coded(columns, if index == 0 { repetition } else { level + 1 }, *key, value);
    }
}
