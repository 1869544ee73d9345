//! Writes OTLP's protobuf, field by field, in the order in which `prost` writes it.
//!
//! Spans are written straight into the buffer that becomes the request, so that generating them costs little beside receiving them.
//! A nested message is written after one reserved length byte; the rare one that needs a longer length moves its content up.

/// Appends a base-128 varint.
pub(super) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes of a varint.
pub(super) fn varint_len(value: u64) -> usize {
    ((63 - (value | 1).leading_zeros() as usize) * 9 + 73) / 64
}

/// Bytes of a length-delimited field with a tag of one byte.
pub(super) fn field_len(content: usize) -> usize {
    1 + varint_len(content as u64) + content
}

/// Appends tag and length of a length-delimited field below 16.
pub(super) fn header(out: &mut Vec<u8>, field: u8, length: usize) {
    out.push(field << 3 | 2);
    varint(out, length as u64);
}

/// Appends a length-delimited field below 16.
pub(super) fn bytes(out: &mut Vec<u8>, field: u8, content: &[u8]) {
    header(out, field, content.len());
    out.extend_from_slice(content);
}

/// Appends a varint field below 16, unless it is zero.
pub(super) fn integer(out: &mut Vec<u8>, field: u8, value: u64) {
    if value != 0 {
        out.push(field << 3);
        varint(out, value);
    }
}

/// Appends a fixed64 field below 16, unless it is zero.
pub(super) fn fixed64(out: &mut Vec<u8>, field: u8, value: u64) {
    if value != 0 {
        out.push(field << 3 | 1);
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// Appends a nested message in a field below 16.
pub(super) fn message(out: &mut Vec<u8>, field: u8, content: impl FnOnce(&mut Vec<u8>)) {
    out.push(field << 3 | 2);
    out.push(0);
    let start = out.len();
    content(out);
    let length = out.len() - start;
    if length < 0x80 {
        out[start - 1] = length as u8;
    } else {
        let mut prefix = Vec::with_capacity(5);
        varint(&mut prefix, length as u64);
        out.splice(start - 1..start, prefix);
    }
}

/// Writes the `KeyValue`s of one message, each as the field given.
#[derive(Debug)]
pub(super) struct Attributes<'a> {
    pub(super) out: &'a mut Vec<u8>,
    pub(super) field: u8,
}

impl Attributes<'_> {
    fn key_value(&mut self, key: &str, any_value: usize) {
        header(self.out, self.field, field_len(key.len()) + field_len(any_value));
        bytes(self.out, 1, key.as_bytes());
        header(self.out, 2, any_value);
    }

    pub(super) fn string(&mut self, key: &str, value: &str) {
        self.key_value(key, field_len(value.len()));
        bytes(self.out, 1, value.as_bytes());
    }

    pub(super) fn boolean(&mut self, key: &str, value: bool) {
        self.key_value(key, 2);
        self.out.extend_from_slice(&[2 << 3, u8::from(value)]);
    }

    pub(super) fn integer(&mut self, key: &str, value: i64) {
        self.key_value(key, 1 + varint_len(value as u64));
        self.out.push(3 << 3);
        varint(self.out, value as u64);
    }

    pub(super) fn double(&mut self, key: &str, value: f64) {
        self.key_value(key, 9);
        self.out.push(4 << 3 | 1);
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(super) fn strings<'v>(&mut self, key: &str, values: impl Iterator<Item = &'v str> + Clone) {
        let array: usize = values.clone().map(|value| field_len(field_len(value.len()))).sum();
        self.key_value(key, field_len(array));
        header(self.out, 5, array);
        for value in values {
            header(self.out, 1, field_len(value.len()));
            bytes(self.out, 1, value.as_bytes());
        }
    }
}
