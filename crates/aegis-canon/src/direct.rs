//! The strict door straight into a type, with no value in between: for bodies that are read once, by those who know what is in them.
//! Promises to give what the long way gives ([`crate::parse_strict_with`], then `serde_json::from_value`), or nothing. Nothing is no
//! verdict: an array where a type has fields, an escape in a key, an object of very many keys and everything wrong end so, and it is the
//! long way that says what is wrong.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Number, Value};

use crate::read::Reader;
use crate::{CanonError, Limits};

/// Keys of one object that are held against each other one by one.
const MOST_KEYS: usize = 64;

/// So many of them without an allocation.
const KEYS_AT_HAND: usize = 16;

/// Reads a JSON text through the strict door into a `T`, within `limits`. None says nothing of the text: read it the long way.
///
/// ```
/// use std::collections::BTreeMap;
///
/// let limits = aegis_canon::Limits::default();
/// let read = |text: &'static str| aegis_canon::read_as::<BTreeMap<String, bool>>(text.as_bytes(), limits);
/// assert_eq!(read(r#"{"a": true}"#).map(|map| map["a"]), Some(true));
/// assert!(read(r#"{"a": true, "a": true}"#).is_none());
/// ```
#[must_use]
pub fn read_as<'de, T: Deserialize<'de>>(input: &'de [u8], limits: Limits) -> Option<T> {
    let mut reader = Reader::open(input, limits).ok()?;
    let read = T::deserialize(Direct { reader: &mut reader, depth: 0 }).ok()?;
    reader.end().ok()?;
    Some(read)
}

/// The short way ends here.
#[derive(Debug)]
struct LongWay;

impl fmt::Display for LongWay {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("only the long way can tell")
    }
}

impl std::error::Error for LongWay {}

impl de::Error for LongWay {
    fn custom<T: fmt::Display>(_message: T) -> Self {
        Self
    }
}

impl From<CanonError> for LongWay {
    fn from(_error: CanonError) -> Self {
        Self
    }
}

/// One value of the text, not read yet.
struct Direct<'reader, 'de> {
    reader: &'reader mut Reader<'de>,
    /// Containers around it.
    depth: usize,
}

impl<'de> Direct<'_, 'de> {
    fn peek(&mut self) -> Option<u8> {
        self.reader.next_significant()
    }

    fn object<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, LongWay> {
        let inside = self.reader.enter(self.depth)?;
        let mut members = Members {
            reader: self.reader,
            inside,
            keys: Keys { few: [""; KEYS_AT_HAND], more: Vec::new(), count: 0 },
            ended: false,
        };
        let value = visitor.visit_map(&mut members)?;
        if members.ended { Ok(value) } else { Err(LongWay) }
    }

    fn array<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, LongWay> {
        let inside = self.reader.enter(self.depth)?;
        let mut items = Items { reader: self.reader, inside, begun: false, ended: false };
        let value = visitor.visit_seq(&mut items)?;
        if items.ended { Ok(value) } else { Err(LongWay) }
    }

    fn string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, LongWay> {
        match self.reader.text()? {
            Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
            Cow::Owned(text) => visitor.visit_string(text),
        }
    }
}

/// As `serde_json::Value` is read, but for fields in an array and for enums, which no request has.
impl<'de> Deserializer<'de> for Direct<'_, 'de> {
    type Error = LongWay;

    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, LongWay> {
        match self.peek() {
            Some(b'{') => self.object(visitor),
            Some(b'[') => self.array(visitor),
            Some(b'"') => self.string(visitor),
            _ => match self.reader.value(self.depth)? {
                Value::Null => visitor.visit_unit(),
                Value::Bool(flag) => visitor.visit_bool(flag),
                Value::Number(number) => visit_number(&number, visitor),
                Value::String(_) | Value::Array(_) | Value::Object(_) => Err(LongWay),
            },
        }
    }

    fn deserialize_option<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, LongWay> {
        if self.peek() == Some(b'n') {
            self.reader.value(self.depth)?;
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_bool<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, LongWay> {
        match self.peek() {
            Some(b't' | b'f') => self.deserialize_any(visitor),
            _ => Err(LongWay),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, LongWay> {
        match self.peek() {
            Some(b'"') => self.string(visitor),
            _ => Err(LongWay),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, LongWay> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, LongWay> {
        self.deserialize_str(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, LongWay> {
        match self.peek() {
            Some(b'{') => self.object(visitor),
            _ => Err(LongWay),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, LongWay> {
        self.deserialize_map(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, LongWay> {
        match self.peek() {
            Some(b'[') => self.array(visitor),
            _ => Err(LongWay),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, LongWay> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, LongWay> {
        Err(LongWay)
    }

    /// What nobody asked for goes through the strict door too.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, LongWay> {
        self.reader.value(self.depth)?;
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct
    }
}

fn visit_number<'de, V: Visitor<'de>>(number: &Number, visitor: V) -> Result<V::Value, LongWay> {
    if let Some(number) = number.as_u64() {
        visitor.visit_u64(number)
    } else if let Some(number) = number.as_i64() {
        visitor.visit_i64(number)
    } else {
        visitor.visit_f64(number.as_f64().ok_or(LongWay)?)
    }
}

/// The keys of one object so far.
struct Keys<'de> {
    few: [&'de str; KEYS_AT_HAND],
    more: Vec<&'de str>,
    count: usize,
}

impl<'de> Keys<'de> {
    /// False for one that was there before, and for one too many.
    fn take(&mut self, key: &'de str) -> bool {
        let few = &self.few[..self.count.min(KEYS_AT_HAND)];
        if self.count >= MOST_KEYS || few.contains(&key) || self.more.contains(&key) {
            return false;
        }
        match self.few.get_mut(self.count) {
            Some(place) => *place = key,
            None => self.more.push(key),
        }
        self.count += 1;
        true
    }
}

/// The members of an object whose brace was read.
struct Members<'reader, 'de> {
    reader: &'reader mut Reader<'de>,
    inside: usize,
    keys: Keys<'de>,
    ended: bool,
}

impl<'de> MapAccess<'de> for Members<'_, 'de> {
    type Error = LongWay;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, LongWay> {
        if self.ended {
            return Ok(None);
        }
        match self.reader.next_significant() {
            Some(b'}') => {
                self.reader.step();
                self.ended = true;
                return Ok(None);
            }
            Some(b',') if self.keys.count > 0 => self.reader.step(),
            _ if self.keys.count > 0 => return Err(LongWay),
            _ => {}
        }
        if self.reader.next_significant() != Some(b'"') {
            return Err(LongWay);
        }
        let Cow::Borrowed(key) = self.reader.text()? else { return Err(LongWay) };
        if !self.keys.take(key) || self.reader.next_significant() != Some(b':') {
            return Err(LongWay);
        }
        self.reader.step();
        let key: BorrowedStrDeserializer<'de, LongWay> = BorrowedStrDeserializer::new(key);
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, LongWay> {
        seed.deserialize(Direct { reader: &mut *self.reader, depth: self.inside })
    }
}

/// The items of an array whose bracket was read.
struct Items<'reader, 'de> {
    reader: &'reader mut Reader<'de>,
    inside: usize,
    begun: bool,
    ended: bool,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = LongWay;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, LongWay> {
        if self.ended {
            return Ok(None);
        }
        match self.reader.next_significant() {
            Some(b']') => {
                self.reader.step();
                self.ended = true;
                return Ok(None);
            }
            Some(b',') if self.begun => self.reader.step(),
            _ if self.begun => return Err(LongWay),
            _ => {}
        }
        self.begun = true;
        seed.deserialize(Direct { reader: &mut *self.reader, depth: self.inside }).map(Some)
    }
}
