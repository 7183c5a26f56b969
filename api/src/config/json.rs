//! JSON read whole, with the place of what is wrong.
//!
//! Promises: the text is one object and nothing after it; unknown keys are refused where the types say so. Must never: take an array for an
//! object, which the parser alone would do.

use serde::de::{DeserializeOwned, Error as _};

/// What is wrong with a JSON text, and where.
#[derive(Debug)]
pub struct JsonError {
    /// The place, as in `drives[0].drive_id`; `None` where the text as a whole is meant.
    pub place: Option<String>,
    /// What the parser said.
    pub source: serde_json::Error,
}

/// Reads one object.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    let whole = |source| JsonError { place: None, source };
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        Some(b'{') => {}
        Some(_) => return Err(whole(serde_json::Error::custom("a JSON object is expected"))),
        None => return Err(whole(serde_json::Error::custom("it is empty, a JSON object is expected"))),
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let place = error.path().to_string();
        JsonError { place: (place != ".").then_some(place), source: error.into_inner() }
    })?;
    json.end().map_err(whole)?;
    Ok(value)
}
