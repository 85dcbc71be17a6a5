use crate::error::Result;
use crate::formats::gguf::Metadata;
pub(crate) fn rebuild(_m: &Metadata, _notes: &mut Vec<String>) -> Result<Vec<(String, Vec<u8>)>> {
    Ok(Vec::new())
}
