//! Reads BTF ([BPF Type Format]) as far as maps and their keys and values need it.
//!
//! [BPF Type Format]: https://docs.kernel.org/bpf/btf.html

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

const INT: u32 = 1;
const PTR: u32 = 2;
const ARRAY: u32 = 3;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
const ENUM: u32 = 6;
const FUNC_PROTO: u32 = 13;
const VAR: u32 = 14;
const DATASEC: u32 = 15;
const DECL_TAG: u32 = 17;
const ENUM64: u32 = 19;

/// A member of a struct.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Bytes from the struct's start.
    pub offset: u32,
    /// Bytes it takes.
    pub size: u32,
}

/// The type of a map's key or value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Its name.
    pub name: String,
    /// Bytes it takes.
    pub size: u32,
    /// Members, of a struct.
    pub members: Vec<Member>,
}

/// A map as the object declares it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapDefinition {
    /// `BPF_MAP_TYPE_*`.
    pub kind: u32,
    /// Elements.
    pub max_entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
    /// The key.
    pub key: Layout,
    /// The value.
    pub value: Layout,
}

#[derive(Debug)]
struct Type {
    name: String,
    kind: u32,
    /// A size or another type's number, by the kind.
    size: u32,
    members: Vec<(String, u32, u32)>,
    /// Of an array: element type and count.
    array: Option<(u32, u32)>,
}

/// The maps that an eBPF object declares in BTF, by name.
///
/// # Errors
/// It is no ELF object with BTF, or one of its maps is declared in another way.
pub fn maps(object: &[u8]) -> Result<BTreeMap<String, MapDefinition>> {
    let file = object::File::parse(object).context("an ELF object")?;
    let section = file.section_by_name(".BTF").context("the object has no BTF")?;
    let types = types(section.data()?)?;
    let graph = Graph { types };
    let mut maps = BTreeMap::new();
    for variable in graph.types.iter().filter(|t| t.kind == VAR) {
        let definition = graph.get(variable.size)?;
        if definition.kind != STRUCT || !definition.members.iter().any(|m| m.0 == "max_entries") {
            continue;
        }
        let map = graph.map(definition).with_context(|| variable.name.clone())?;
        maps.insert(variable.name.clone(), map);
    }
    Ok(maps)
}

struct Graph {
    types: Vec<Type>,
}

impl Graph {
    fn get(&self, number: u32) -> Result<&Type> {
        self.types.get(number as usize).with_context(|| format!("no type {number}"))
    }

    fn map(&self, definition: &Type) -> Result<MapDefinition> {
        let pointee = |name: &str| -> Result<u32> {
            let (_, number, _) = definition
                .members
                .iter()
                .find(|member| member.0 == name)
                .with_context(|| format!("no member {name}"))?;
            let pointer = self.get(*number)?;
            ensure!(pointer.kind == PTR, "{name} is no pointer");
            Ok(pointer.size)
        };
        let number = |name: &str| -> Result<u32> {
            let (_, count) =
                self.get(pointee(name)?)?.array.with_context(|| format!("{name} is no number"))?;
            Ok(count)
        };
        Ok(MapDefinition {
            kind: number("type")?,
            max_entries: number("max_entries")?,
            flags: number("map_flags")?,
            key: self.layout(pointee("key")?)?,
            value: self.layout(pointee("value")?)?,
        })
    }

    fn layout(&self, number: u32) -> Result<Layout> {
        let ty = self.get(number)?;
        let members = ty
            .members
            .iter()
            .map(|(name, number, bits)| {
                Ok(Member { name: name.clone(), offset: bits / 8, size: self.size(*number)? })
            })
            .collect::<Result<_>>()?;
        Ok(Layout { name: ty.name.clone(), size: self.size(number)?, members })
    }

    fn size(&self, number: u32) -> Result<u32> {
        let ty = self.get(number)?;
        Ok(match ty.kind {
            INT | STRUCT | UNION | ENUM | ENUM64 => ty.size,
            PTR => 8,
            ARRAY => {
                let (element, count) = ty.array.context("an array has an element type")?;
                self.size(element)? * count
            }
            kind => bail!("type {number} of kind {kind} has no size here"),
        })
    }
}

fn types(section: &[u8]) -> Result<Vec<Type>> {
    let word = |at: usize| -> Result<u32> {
        let bytes = section.get(at..at + 4).context("the BTF section is cut off")?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    ensure!(word(0)? & 0xffff == 0xeb9f, "no BTF magic");
    let header = word(4)? as usize;
    let mut at = header + word(8)? as usize;
    let end = at + word(12)? as usize;
    let strings = header + word(16)? as usize;
    let name = |offset: u32| -> Result<String> {
        let bytes = section.get(strings + offset as usize..).context("a name is cut off")?;
        let end = bytes.iter().position(|byte| *byte == 0).context("a name has no end")?;
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    };
    // Type 0 is void.
    let void = Type { name: String::new(), kind: 0, size: 0, members: Vec::new(), array: None };
    let mut types = vec![void];
    while at < end {
        let info = word(at + 4)?;
        let (count, kind) = ((info & 0xffff) as usize, info >> 24 & 0x1f);
        let has_bitfields = info >> 31 == 1;
        let mut ty = Type {
            name: name(word(at)?)?,
            kind,
            size: word(at + 8)?,
            members: Vec::new(),
            array: None,
        };
        at += 12;
        match kind {
            INT | VAR | DECL_TAG => at += 4,
            ARRAY => {
                ty.array = Some((word(at)?, word(at + 8)?));
                at += 12;
            }
            STRUCT | UNION => {
                for _ in 0..count {
                    let offset = word(at + 8)?;
                    let offset = if has_bitfields { offset & 0x00ff_ffff } else { offset };
                    ty.members.push((name(word(at)?)?, word(at + 4)?, offset));
                    at += 12;
                }
            }
            ENUM | FUNC_PROTO => at += count * 8,
            DATASEC | ENUM64 => at += count * 12,
            _ => {}
        }
        types.push(ty);
    }
    Ok(types)
}
