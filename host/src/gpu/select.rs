//! `gpu.use`: which of the machine's GPUs the queue may use.

use super::OpenError;
use super::nvml::Gpu;

/// The GPUs that `only` names by index, UUID, or the beginning of a UUID, in the order of their indexes; all when it is empty.
/// A name without a GPU is only warned of while another has one: a broken GPU must not stop the rest.
pub(super) fn selected(found: Vec<Gpu>, only: &[String]) -> Result<Vec<Gpu>, OpenError> {
    if only.is_empty() {
        return Ok(found);
    }
    let mut chosen = vec![false; found.len()];
    for name in only {
        let fitting: Vec<usize> = (0..found.len()).filter(|at| fits(&found[*at], name)).collect();
        match &fitting[..] {
            // One GPU, or all the instances of one.
            [first, rest @ ..] if rest.iter().all(|at| found[*at].index == found[*first].index) => {
                fitting.iter().for_each(|at| chosen[*at] = true);
            }
            [] => tracing::warn!(name, gpus = listed(&found), "gpu.use names a GPU that this machine does not have"),
            _ => {
                let several: Vec<Gpu> = fitting.into_iter().map(|at| found[at].clone()).collect();
                return Err(OpenError::AmbiguousGpu { asked: name.clone(), found: listed(&several) });
            }
        }
    }
    if !chosen.contains(&true) {
        return Err(OpenError::UnknownGpus { asked: only.join(", "), found: listed(&found) });
    }
    Ok(found.into_iter().zip(chosen).filter_map(|(gpu, chosen)| chosen.then_some(gpu)).collect())
}

/// Whether `only` may mean a GPU of which nothing but its index is known: by this index, or by a UUID that none of those has that
/// were found.
pub(super) fn may_mean(only: &[String], index: u32, found: &[Gpu]) -> bool {
    let may_name = |name: &String| {
        let number = name.split_once(':').map_or(name.as_str(), |(index, _)| index);
        match number.parse::<u32>() {
            Ok(number) => number == index,
            Err(_) => !found.iter().any(|gpu| fits(gpu, name)),
        }
    };
    only.is_empty() || only.iter().any(may_name)
}

/// A name is an index (`0`), for an instance also with its own (`0:1`), or the beginning of a UUID: the GPU's, or an instance's.
fn fits(gpu: &Gpu, name: &str) -> bool {
    if let Ok(index) = name.parse::<u32>() {
        return gpu.index == index;
    }
    if let Some((index, instance)) = name.split_once(':')
        && let (Ok(index), Ok(instance)) = (index.parse::<u32>(), instance.parse::<u32>())
    {
        return gpu.index == index && gpu.instance.as_ref().is_some_and(|(own, _)| *own == instance);
    }
    let whole = gpu.instance.iter().map(|(_, whole)| whole);
    std::iter::once(&gpu.uuid).chain(whole).any(|uuid| {
        name.len() > "GPU-".len() && uuid.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
    })
}

fn listed(gpus: &[Gpu]) -> String {
    gpus.iter().map(|gpu| format!("{} ({})", gpu.index, gpu.uuid)).collect::<Vec<_>>().join(", ")
}
