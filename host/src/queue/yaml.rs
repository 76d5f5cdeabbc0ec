//! A configuration as YAML.
//!
//! YAML 1.2 is a superset of JSON (yaml.org/spec/1.2.2, §1.3), so JSON is what is written, with one difference: readers that
//! follow YAML 1.1, PyYAML among them, take `1e-05` for a string. A float therefore gets a point and a signed exponent.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use serde_json::{Map, Value};

/// The bytes of `config.yaml`.
///
/// # Errors
/// Those of serde_json; a map of JSON values has none.
pub(super) fn to_vec(config: &Map<String, Value>) -> serde_json::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    config.serialize(&mut Serializer::with_formatter(&mut bytes, Floats(PrettyFormatter::new())))?;
    bytes.push(b'\n');
    Ok(bytes)
}

struct Floats(PrettyFormatter<'static>);

impl Formatter for Floats {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let text = format!("{value:?}");
        match text.split_once('e') {
            Some((number, exponent)) => {
                let number = if number.contains('.') { number.to_owned() } else { format!("{number}.0") };
                let sign = if exponent.starts_with('-') { "" } else { "+" };
                write!(writer, "{number}e{sign}{exponent}")
            }
            None => writer.write_all(text.as_bytes()),
        }
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn floats_are_floats_for_readers_of_yaml_1_1() {
        let Value::Object(config) = json!({"lr": 1e-5, "big": 1e300, "half": 0.5, "whole": 3, "text": "1e-5"}) else {
            unreachable!()
        };
        let text = String::from_utf8(to_vec(&config).expect("plain values")).expect("UTF-8");
        for line in ["\"lr\": 1.0e-5", "\"big\": 1.0e+300", "\"half\": 0.5", "\"whole\": 3", "\"text\": \"1e-5\""] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
