//! Resources and scopes: what spans share.
//!
//! ```text
//!  message ─ cache by bytes ─► converted: numbers of its strings, attributes, class ─► written wherever a row needs it
//! ```
//!
//! They repeat in every trace, so each is converted once per row group. Those that are equal by §8.6 of block-format.md have one class,
//! whatever their bytes.

use std::borrow::Cow;

use super::{
    super::{
        attributes::{self, AttributeLeaves, Coded, Value},
        columns::Columns,
        format::Format,
    },
    Encoder, Leaves, Own, RESOURCE, SCOPE,
    own::Slots,
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
    own: Slots,
    attributes: Vec<(u32, Coded)>,
    dropped: i64,
    /// How many attributes it came with.
    pub(super) count: usize,
}

/// A scope, converted.
#[derive(Debug)]
pub(super) struct Scope {
    pub(super) class: u32,
    name: u32,
    version: u32,
    attributes: Vec<(u32, Coded)>,
    dropped: i64,
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
        let mut own = self.resource_own.slots();
        let mut generic = Vec::new();
        let (mut dropped, mut count) = (0, 0);
        for field in Fields::new(message) {
            let field = field?;
            match (field.number, field.value) {
                (1, Wire::Bytes(attribute)) => {
                    count += 1;
                    let (key, value) = attributes::read(attribute)?;
                    match value {
                        Value::Text(text) if key == b"service.name" => {
                            root_service.get_or_insert_with(|| text.clone());
                            service = Some(text);
                        }
                        value => {
                            let taken =
                                self.resource_own.slot(key).is_some_and(|slot| self.resource_own.offer(columns, &mut own, slot, &value));
                            if !taken {
                                generic.push((key, leaves.resource_attributes.code(columns, &value)));
                            }
                        }
                    }
                }
                (2, Wire::Varint(value)) => dropped = value as u32 as i32,
                _ => {}
            }
        }
        let service = columns.code(leaves.service, service.as_deref().unwrap_or_default());
        let root_service = columns.code(leaves.root_service, root_service.as_deref().unwrap_or_default());
        let mut identity = Vec::new();
        identity.extend_from_slice(&service.to_le_bytes());
        own.identity(&mut identity);
        let attributes = coded(columns, &leaves.resource_attributes, generic, self.format, &mut identity);
        let (class, _) = self.resource_classes.intern(&identity);
        self.resources.push(Resource { class, service, root_service, own, attributes, dropped: dropped.into(), count });
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
                    if let Some((leaves, _)) = &leaves.scope_attributes {
                        let (key, value) = attributes::read(attribute)?;
                        generic.push((key, leaves.code(columns, &value)));
                    }
                }
                (4, Wire::Varint(value)) => dropped = value as u32 as i32,
                _ => {}
            }
        }
        let name = columns.code(leaves.scope_name, name);
        let version = columns.code(leaves.scope_version, version);
        let mut identity = Vec::new();
        identity.extend_from_slice(&name.to_le_bytes());
        identity.extend_from_slice(&version.to_le_bytes());
        let attributes = match &leaves.scope_attributes {
            Some((leaves, _)) => coded(columns, leaves, generic, self.format, &mut identity),
            None => Vec::new(),
        };
        let (class, _) = self.scope_classes.intern(&identity);
        self.scopes.push(Scope { class, name, version, attributes, dropped: dropped.into() });
        Ok(found)
    }
}

/// Numbers the keys, and sorts attributes by key, those of equal keys by value, in the versions that do so. Appends bytes to `identity` that
/// are equal for equal attributes in any order.
fn coded(
    columns: &mut Columns,
    leaves: &AttributeLeaves,
    generic: Vec<(&[u8], Coded)>,
    format: Format,
    identity: &mut Vec<u8>,
) -> Vec<(u32, Coded)> {
    let mut all: Vec<_> = generic
        .into_iter()
        .map(|(key, value)| {
            let mut bytes = Vec::new();
            value.identity(&mut bytes);
            (key, bytes, leaves.key(columns, key), value)
        })
        .collect();
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by(|&a, &b| (all[a].0, &all[a].1).cmp(&(all[b].0, &all[b].1)));
    for &at in &order {
        identity.extend_from_slice(&all[at].2.to_le_bytes());
        identity.extend_from_slice(&all[at].1);
    }
    if matches!(format, Format::V4 | Format::V5) {
        all.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    }
    all.into_iter().map(|(_, _, key, value)| (key, value)).collect()
}

/// Writes a resource as the next of its row.
pub(super) fn write_resource(columns: &mut Columns, leaves: &Leaves, own: &Own, resource: &Resource, repetition: u8) {
    columns.enter(leaves.resources, repetition, RESOURCE);
    write_attributes(columns, &leaves.resource_attributes, &resource.attributes, repetition, RESOURCE);
    if let Some(leaf) = leaves.resource_dropped {
        columns.push_integer(leaf, resource.dropped);
    }
    columns.push_code(leaves.service, resource.service);
    own.write(columns, &resource.own, leaves.resources, repetition, RESOURCE);
}

/// Writes a scope as the next of its resource.
pub(super) fn write_scope(columns: &mut Columns, leaves: &Leaves, scope: &Scope, repetition: u8) {
    columns.enter(leaves.scopes, repetition, SCOPE);
    columns.push_code(leaves.scope_name, scope.name);
    columns.push_code(leaves.scope_version, scope.version);
    if let Some((attributes, dropped)) = &leaves.scope_attributes {
        write_attributes(columns, attributes, &scope.attributes, repetition, SCOPE);
        columns.push_integer(*dropped, scope.dropped);
    }
}

fn write_attributes(columns: &mut Columns, leaves: &AttributeLeaves, attributes: &[(u32, Coded)], repetition: u8, level: u8) {
    if attributes.is_empty() {
        leaves.none(columns, repetition, level);
    }
    for (index, (key, value)) in attributes.iter().enumerate() {
        leaves.push_coded(columns, if index == 0 { repetition } else { level + 1 }, *key, value);
    }
}
