//! What the folder asks for: which plugins there are, of which manifest and which component.

use crate::folder::{self, Listing, Stamp};
use crate::load::{LoadError, Origin};
use crate::manifest::{Manifest, SecretSource};
use crate::watch::FolderWatch;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A manifest, or why there is none. Shared, because it is kept until the file changes.
type ReadManifest = Result<Arc<Manifest>, Arc<LoadError>>;

/// What the folder asks for, for one name.
#[derive(Clone)]
pub struct Wanted {
    pub manifest: ReadManifest,
    /// None when the component is missing.
    pub origin: Option<Origin>,
    manifest_stamp: Option<Stamp>,
    component_stamp: Option<Stamp>,
    /// The secrets' files and the directories that the manifest names, none for those that are missing.
    named: Vec<Option<Stamp>>,
}

impl Wanted {
    /// Whether nothing has changed. What could not be read is named by its stamps too.
    pub fn same(&self, other: &Wanted) -> bool {
        self.refusal() == other.refusal()
            && self.manifest_stamp == other.manifest_stamp
            && self.origin == other.origin
            && self.component_stamp == other.component_stamp
            && self.named == other.named
    }

    fn refusal(&self) -> Option<String> {
        self.manifest.as_ref().err().map(ToString::to_string)
    }

    /// The name of the component's file.
    pub fn file(&self, name: &str) -> String {
        let named = self.manifest.as_ref().ok().and_then(|manifest| manifest.component.as_ref());
        named.map_or_else(|| format!("{name}.wasm"), |file| file.0.clone())
    }
}

/// Looks into the folder. Its functions block.
pub struct Looker {
    folder: PathBuf,
    watch: FolderWatch,
    /// Bytes of a manifest that are read.
    manifest_limit: u64,
    /// Manifests that were read, by their stamps.
    manifests: BTreeMap<String, (Stamp, ReadManifest)>,
    /// The component that each manifest named when it could last be read, without `.wasm`.
    named: BTreeMap<String, String>,
}

impl Looker {
    pub fn new(folder: PathBuf, watch: FolderWatch, manifest_limit: u64) -> Looker {
        Looker { folder, watch, manifest_limit, manifests: BTreeMap::new(), named: BTreeMap::new() }
    }

    /// Looks at the whole folder. `guarding` are the names of all plugins that are in force, or were when the service ended.
    ///
    /// # Errors
    /// When the folder cannot be used, with a sentence for a person.
    pub fn look(&mut self, guarding: &BTreeSet<String>) -> Result<BTreeMap<String, Wanted>, String> {
        if let Err(error) = self.watch.follow() {
            tracing::error!(%error, "cannot watch the plugins folder any more: changes in it are not seen; raise fs.inotify.max_user_watches and restart");
        }
        folder::trusted(&self.folder).map_err(|error| error.to_string())?;
        let listing = folder::list(&self.folder)
            .map_err(|error| format!("cannot read the folder {}: {error}", self.folder.display()))?;
        self.read_manifests(&listing);
        let wanted = self.wanted(&listing, guarding);
        let manifests = wanted.values().filter_map(|wanted| wanted.manifest.as_ref().ok());
        let named: Vec<PathBuf> = manifests.flat_map(|manifest| files_of(manifest).map(|(path, _)| path)).collect();
        // The folder itself may be a link that is turned to another one.
        let elsewhere = listing.links.into_iter().chain(named).chain([self.folder.clone()]);
        if let Err(error) = self.watch.listen_for(elsewhere) {
            tracing::warn!(%error, "changes of files that plugins have elsewhere are not all seen: touch the manifest after changing one");
        }
        Ok(wanted)
    }

    /// Reads the manifests that are new or changed.
    fn read_manifests(&mut self, listing: &Listing) {
        self.manifests.retain(|name, _| listing.manifests.contains_key(name));
        self.named.retain(|name, _| listing.manifests.contains_key(name));
        for (name, stamp) in &listing.manifests {
            if self.manifests.get(name).is_some_and(|(known, _)| known == stamp) {
                continue;
            }
            let path = self.folder.join(format!("{name}.toml"));
            let read = read_manifest(&path, name, self.manifest_limit).map(Arc::new).map_err(Arc::new);
            if let Ok(manifest) = &read {
                let named = manifest.component.as_ref().map_or(name.as_str(), |file| file.stem());
                self.named.insert(name.clone(), named.to_owned());
            }
            self.manifests.insert(name.clone(), (*stamp, read));
        }
    }

    /// A component that has no manifest of its own and serves another one is no plugin of its own. Nor does it become one while
    /// there is a manifest that cannot be read and may be the one that names it: it would judge without its settings.
    fn wanted(&self, listing: &Listing, guarding: &BTreeSet<String>) -> BTreeMap<String, Wanted> {
        let mut wanted = BTreeMap::new();
        let mut serving = BTreeSet::new();
        for (name, (stamp, manifest)) in &self.manifests {
            let stem = self.named.get(name).unwrap_or(name);
            let component_stamp = listing.components.get(stem).copied();
            let bundled = manifest.as_ref().ok().and_then(|manifest| manifest.bundled.clone());
            let (origin, component_stamp) = match bundled {
                Some(name) => (Some(Origin::Bundled(name)), None),
                None => (component_stamp.map(|_| self.component(stem)), component_stamp),
            };
            let named = manifest.as_ref().ok().map(|manifest| files_of(manifest).map(|(_, stamp)| stamp).collect());
            serving.insert(stem.clone());
            wanted.insert(
                name.clone(),
                Wanted {
                    manifest: manifest.clone(),
                    manifest_stamp: Some(*stamp),
                    origin,
                    component_stamp,
                    named: named.unwrap_or_default(),
                },
            );
        }
        // One beside a component of its own name most likely belongs to that.
        let may_name_another = |name: &String| !listing.components.contains_key(name);
        let mut unread = self.manifests.iter().filter(|(_, (_, manifest))| manifest.is_err()).map(|(name, _)| name);
        let unread = unread.find(|name| may_name_another(name));
        for (name, stamp) in &listing.components {
            if wanted.contains_key(name) || serving.contains(name) {
                continue;
            }
            let manifest = match unread {
                Some(unread) if !guarding.contains(name) => Err(Arc::new(LoadError::MayServe(unread.clone()))),
                _ => Ok(Arc::new(Manifest::default())),
            };
            wanted.insert(
                name.clone(),
                Wanted {
                    manifest,
                    manifest_stamp: None,
                    origin: Some(self.component(name)),
                    component_stamp: Some(*stamp),
                    named: Vec::new(),
                },
            );
        }
        wanted
    }

    fn component(&self, stem: &str) -> Origin {
        Origin::File(self.folder.join(format!("{stem}.wasm")))
    }
}

/// What a manifest names outside the folder, as it is now.
fn files_of(manifest: &Manifest) -> impl Iterator<Item = (PathBuf, Option<Stamp>)> {
    let secrets = manifest.secrets.values().filter_map(|source| match source {
        SecretSource::File(path) => Some((path.clone(), Stamp::of(path))),
        SecretSource::Env(_) => None,
    });
    // What lies in a directory is read by each call; whether it is there decides about the load.
    let directories = manifest.read.iter().map(|path| (path.0.clone(), Stamp::of_directory(&path.0)));
    secrets.chain(directories)
}

fn read_manifest(path: &Path, name: &str, limit: u64) -> Result<Manifest, LoadError> {
    let bytes = folder::read(path, limit)?;
    let text = String::from_utf8_lossy(&bytes);
    Manifest::parse(&text).map_err(|source| LoadError::Manifest { file: name.to_owned(), source })
}
