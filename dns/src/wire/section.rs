//! Sections of records, as long as they fit.
//!
//! hickory's encoder compresses no more than 120 names of a message, and looks for room for the
//! whole name first. A large headless Service has thousands of records of one owner, so a run of
//! equal owners is pointed to here (RFC 1035 section 4.1.4).

use hickory_proto::ProtoError;
use hickory_proto::rr::{Name, Record};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};

/// The two bits that make a pointer of two octets.
const POINTER: u16 = 0xc000;

/// The owner that was written last, and the pointer to it.
pub(super) struct Owner<'r> {
    name: &'r Name,
    pointer: u16,
}

impl<'r> Owner<'r> {
    /// A name that is written whole at this offset, which is below 0x4000.
    pub(super) fn new(name: &'r Name, offset: u16) -> Self {
        Self { name, pointer: POINTER | offset }
    }
}

/// Emits records as long as they fit: how many there were, and whether those were all.
pub(super) fn emit<'r>(
    encoder: &mut BinEncoder<'_>,
    last: &mut Owner<'r>,
    records: &'r [Record],
) -> Result<(u16, bool), ProtoError> {
    let mut count = 0u16;
    for record in records {
        let start = encoder.offset();
        match emit_one(encoder, last, record) {
            Ok(()) => {}
            Err(ProtoError::MaxBufferSizeExceeded(_)) => {
                encoder.set_offset(start);
                encoder.trim();
                return Ok((count, false));
            }
            Err(error) => return Err(error),
        }
        count = count
            .checked_add(1)
            .ok_or_else(|| ProtoError::from("more records than a section can count"))?;
    }
    Ok((count, true))
}

fn emit_one<'r>(
    encoder: &mut BinEncoder<'_>,
    last: &mut Owner<'r>,
    record: &'r Record,
) -> Result<(), ProtoError> {
    if last.name.eq_case(&record.name) {
        encoder.emit_u16(last.pointer)?;
    } else {
        let start = encoder.offset();
        record.name.emit(encoder)?;
        if let Some(pointer) = pointer_to(encoder, start) {
            *last = Owner { name: &record.name, pointer };
        }
    }
    record.record_type().emit(encoder)?;
    record.dns_class.emit(encoder)?;
    encoder.emit_u32(record.ttl)?;
    let length = encoder.place::<u16>()?;
    record.data.emit(encoder)?;
    let written = encoder.len_since_place(&length);
    let written =
        u16::try_from(written).map_err(|_| ProtoError::from("more data than a record can hold"))?;
    length.replace(encoder, written)
}

/// The pointer to the name that was just written at an offset: what stands there if that is a
/// pointer already, so that none leads to another. `None` for the root, which is shorter than a
/// pointer, and beyond the reach of pointers.
fn pointer_to(encoder: &BinEncoder<'_>, offset: usize) -> Option<u16> {
    if encoder.len() < offset + 2 {
        return None;
    }
    match *encoder.slice_of(offset, offset + 2) {
        [high, low] if high & 0xc0 == 0xc0 => Some(u16::from_be_bytes([high, low])),
        _ => u16::try_from(offset).ok().filter(|o| o & POINTER == 0).map(|o| POINTER | o),
    }
}
