//! JSON forms that values of the document take. Each form defines how a value is read, written and
//! described in the schema, so that the three agree.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Serialize, Serializer, forward_to_deserialize_any};

use super::{names, renamed};

/// A type that is written as a JSON object.
pub trait ObjectSyntax {
    /// The expected form, with an example, for error messages.
    const EXPECTED: &'static str;
    /// Whether unknown fields are ignored.
    const IGNORES_UNKNOWN_FIELDS: bool = false;
}

/// A `T` that is written as a JSON object. The derived [`Deserialize`] alone would accept an array
/// of the fields' values, too, and its error for an unknown field has no suggestion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct JsonObject<T>(pub T);

impl<'de, T: Deserialize<'de> + ObjectSyntax> Deserialize<'de> for JsonObject<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de> + ObjectSyntax> Visitor<'de> for ObjectVisitor<T> {
            type Value = JsonObject<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                object(map).map(JsonObject)
            }
        }

        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// The schema of `T`.
impl<T: JsonSchema> JsonSchema for JsonObject<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// Reads the fields of an object.
fn object<'de, T: Deserialize<'de> + ObjectSyntax, A: MapAccess<'de>>(
    map: A,
) -> Result<T, A::Error> {
    if T::IGNORES_UNKNOWN_FIELDS {
        T::deserialize(MapAccessDeserializer::new(map))
    } else {
        T::deserialize(KnownFields(map))
    }
}

/// Deserializes a struct from a map and refuses unknown fields.
struct KnownFields<A>(A);

impl<'de, A: MapAccess<'de>> Deserializer<'de> for KnownFields<A> {
    type Error = A::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        visitor.visit_map(CheckedKeys { map: self.0, object: name, fields })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, A::Error> {
        visitor.visit_map(self.0)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// The entries of a map. A key outside of `fields` is an error.
struct CheckedKeys<A> {
    map: A,
    /// The name of the struct.
    object: &'static str,
    fields: &'static [&'static str],
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for CheckedKeys<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        let Self { object, fields, .. } = *self;
        self.map.next_key_seed(CheckedKey { seed, object, fields })
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// Reads one key and passes it to `seed` when it is one of `fields`.
struct CheckedKey<S> {
    seed: S,
    object: &'static str,
    fields: &'static [&'static str],
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for CheckedKey<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for CheckedKey<S> {
    type Value = S::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: de::Error>(self, field: &str) -> Result<S::Value, E> {
        if self.fields.contains(&field) {
            self.seed.deserialize(StrDeserializer::new(field))
        } else {
            Err(E::custom(unknown_field(self.object, field, self.fields)))
        }
    }
}

fn unknown_field(object: &str, field: &str, fields: &[&str]) -> String {
    if let Some(new) = renamed::new_name(object, field) {
        return format!("the field `{field}` was renamed; write `{new}`");
    }
    let known = match fields {
        [one] => format!("`{one}`"),
        [one, two] => format!("`{one}` or `{two}`"),
        fields => format!("one of `{}`", fields.join("`, `")),
    };
    match names::closest(field, fields.iter().copied()) {
        Some(near) => {
            format!("unknown field `{field}`, expected {known}; did you mean `{near}`?")
        }
        None => format!("unknown field `{field}`, expected {known}"),
    }
}

/// A value in a short form, or all of it as an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ScalarOrObject<S, O> {
    /// A JSON string or number.
    Scalar(S),
    /// A JSON object.
    Object(O),
}

impl<'de, S: Deserialize<'de>, O: Deserialize<'de> + ObjectSyntax> Deserialize<'de>
    for ScalarOrObject<S, O>
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EitherVisitor<S, O>(PhantomData<(S, O)>);

        impl<S, O: ObjectSyntax> EitherVisitor<S, O> {
            /// Reads the short form from a scalar. An error names both forms.
            fn scalar<'de, E: de::Error, D: Deserializer<'de, Error = E>>(
                self,
                value: Unexpected<'_>,
                deserializer: D,
            ) -> Result<ScalarOrObject<S, O>, E>
            where
                S: Deserialize<'de>,
            {
                S::deserialize(deserializer)
                    .map(ScalarOrObject::Scalar)
                    .map_err(|_| E::invalid_value(value, &O::EXPECTED))
            }
        }

        impl<'de, S: Deserialize<'de>, O: Deserialize<'de> + ObjectSyntax> Visitor<'de>
            for EitherVisitor<S, O>
        {
            type Value = ScalarOrObject<S, O>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(O::EXPECTED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                self.scalar(Unexpected::Str(text), StrDeserializer::new(text))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                self.scalar(Unexpected::Unsigned(number), de::value::U64Deserializer::new(number))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                self.scalar(Unexpected::Signed(number), de::value::I64Deserializer::new(number))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                object(map).map(ScalarOrObject::Object)
            }
        }

        deserializer.deserialize_any(EitherVisitor(PhantomData))
    }
}

impl<S: JsonSchema, O: JsonSchema> JsonSchema for ScalarOrObject<S, O> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("{}Or{}", S::schema_name(), O::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let scalar = generator.subschema_for::<S>();
        let object = generator.subschema_for::<O>();
        json_schema!({ "anyOf": [scalar, object] })
    }
}

/// An integer from `MIN` to `MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Bounded<const MIN: u32, const MAX: u32>(pub u32);

impl<'de, const MIN: u32, const MAX: u32> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BoundedVisitor<const MIN: u32, const MAX: u32>;

        impl<const MIN: u32, const MAX: u32> Visitor<'_> for BoundedVisitor<MIN, MAX> {
            type Value = Bounded<MIN, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from {MIN} to {MAX}")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                u32::try_from(number)
                    .ok()
                    .filter(|number| (MIN..=MAX).contains(number))
                    .map(Bounded)
                    .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                Err(E::invalid_value(Unexpected::Signed(number), &self))
            }
        }

        deserializer.deserialize_u64(BoundedVisitor)
    }
}

impl<const MIN: u32, const MAX: u32> JsonSchema for Bounded<MIN, MAX> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Integer{MIN}To{MAX}").into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": MIN, "maximum": MAX })
    }
}

/// A type that is written as a JSON string.
pub trait TextSyntax: FromStr + fmt::Display {
    /// The expected form, with an example, for error messages.
    const EXPECTED: &'static str;
    /// Valid texts, for the schema.
    const EXAMPLES: &'static [&'static str];

    /// The error message for a text that does not parse; `None` for one that names
    /// [`Self::EXPECTED`].
    fn message(error: &Self::Err) -> Option<String> {
        let _ = error;
        None
    }
}

/// A `T` that is written as a JSON string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text<T>(pub T);

impl<T: fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de, T: TextSyntax> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor<T>(PhantomData<T>);

        impl<T: TextSyntax> Visitor<'_> for TextVisitor<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map(Text).map_err(|error| match T::message(&error) {
                    Some(message) => E::custom(message),
                    None => E::invalid_value(Unexpected::Str(text), &self),
                })
            }
        }

        deserializer.deserialize_str(TextVisitor(PhantomData))
    }
}

impl<T: TextSyntax> JsonSchema for Text<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::EXPECTED.into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "examples": T::EXAMPLES })
    }
}

/// Reads an enum without data from a JSON string: for `#[serde(deserialize_with = "keyword")]`.
///
/// The derived [`Deserialize`] alone would report a value of another type as a syntax error, and
/// would not quote the expected words as they have to be written.
pub(super) fn keyword<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    T::deserialize(Keyword(deserializer))
}

/// Deserializes an enum from a string.
struct Keyword<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Keyword<D> {
    type Error = D::Error;

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_str(KeywordVisitor { name, words, visitor })
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct KeywordVisitor<V> {
    /// The name of the enum.
    name: &'static str,
    words: &'static [&'static str],
    visitor: V,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for KeywordVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.words.iter().enumerate() {
            let separator = match index {
                0 => "",
                _ if index + 1 == self.words.len() => " or ",
                _ => ", ",
            };
            write!(f, "{separator}{word:?}")?;
        }
        Ok(())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<V::Value, E> {
        if self.words.contains(&text) {
            self.visitor.visit_enum(StrDeserializer::new(text))
        } else if let Some(message) = renamed::unsupported_value(self.name, text) {
            Err(E::custom(message))
        } else {
            Err(E::invalid_value(Unexpected::Str(text), &self))
        }
    }
}
