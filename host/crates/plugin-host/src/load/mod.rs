//! From files in a folder to a plugin in force, or to an error that says what to do.

mod component;
mod error;
mod instances;
mod one;

pub use error::LoadError;
pub(crate) use one::{DESCRIBERS, Facts, Ingredients, Kept, Loading, NewPlugin, Origin, READERS, load};
