//! NVML's sets of events, with the critical errors of [`Gpu::xids`](crate::Gpu::xids) in them.

use std::collections::HashMap;
use std::os::raw::{c_uint, c_ulonglong};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlEventTypeXidCriticalError,
    nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST, nvmlReturn_enum_NVML_ERROR_TIMEOUT, nvmlReturn_t,
};

use crate::abi::{INVALID_ARGUMENT, call, handle_of, nvml, put, uuid_of};
use crate::machine::{Machine, wait_until};

/// One GPU of a set, and how many of its errors were told or are older than the set.
struct Member {
    uuid: Arc<str>,
    told: usize,
}

/// The sets, by the number that stands for each.
static SETS: Mutex<Option<Sets>> = Mutex::new(None);

#[derive(Default)]
struct Sets {
    made: usize,
    members: HashMap<usize, Vec<Member>>,
}

fn with_sets<T>(with: impl FnOnce(&mut Sets) -> T) -> T {
    with(SETS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// The next error of a set that was not told yet.
fn next(machine: &Machine, set: usize) -> Option<Result<(Arc<str>, u64), nvmlReturn_t>> {
    with_sets(|sets| {
        let Some(members) = sets.members.get_mut(&set) else { return Some(Err(INVALID_ARGUMENT)) };
        let gpu_of = |uuid: &str| machine.gpus.iter().find(|gpu| gpu.uuid == uuid);
        for member in members.iter_mut() {
            if let Some(xid) = gpu_of(&member.uuid).and_then(|gpu| gpu.xids.get(member.told)) {
                member.told += 1;
                return Some(Ok((member.uuid.clone(), *xid)));
            }
        }
        let lost = members.iter().any(|member| gpu_of(&member.uuid).is_some_and(|gpu| gpu.lost));
        lost.then_some(Err(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST))
    })
}

nvml! {
    fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) {
        call("nvmlEventSetCreate", None, |_| {
            let number = with_sets(|sets| {
                sets.made += 1;
                sets.members.insert(sets.made, Vec::new());
                sets.made
            });
            // SAFETY: the caller's promise.
            unsafe { put(set, std::ptr::without_provenance_mut(number)) }
        })
    }

    fn nvmlEventSetFree(set: nvmlEventSet_t) {
        call("nvmlEventSetFree", None, |_| {
            with_sets(|sets| sets.members.remove(&set.addr())).map(drop).ok_or(INVALID_ARGUMENT)
        })
    }

    fn nvmlDeviceGetSupportedEventTypes(device: nvmlDevice_t, types: *mut c_ulonglong) {
        call("nvmlDeviceGetSupportedEventTypes", uuid_of(device).as_deref(), |_| {
            // SAFETY: the caller's promise.
            unsafe { put(types, nvmlEventTypeXidCriticalError.into()) }
        })
    }

    fn nvmlDeviceRegisterEvents(device: nvmlDevice_t, _types: c_ulonglong, set: nvmlEventSet_t) {
        let uuid = uuid_of(device);
        call("nvmlDeviceRegisterEvents", uuid.as_deref(), |machine| {
            let uuid = uuid.clone().ok_or(INVALID_ARGUMENT)?;
            let gpu = machine.gpus.iter().find(|gpu| *gpu.uuid == *uuid).ok_or(INVALID_ARGUMENT)?;
            if gpu.lost {
                return Err(nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST);
            }
            let member = Member { uuid, told: gpu.xids.len() };
            with_sets(|sets| sets.members.get_mut(&set.addr()).map(|members| members.push(member))).ok_or(INVALID_ARGUMENT)
        })
    }

    fn nvmlEventSetWait_v2(set: nvmlEventSet_t, data: *mut nvmlEventData_t, timeout_ms: c_uint) {
        call("nvmlEventSetWait_v2", None, |_| {
            let mut found = None;
            let until = Instant::now() + Duration::from_millis(timeout_ms.into());
            wait_until(Some(until), |machine| {
                found = next(machine, set.addr());
                found.is_some()
            });
            let (uuid, xid) = found.unwrap_or(Err(nvmlReturn_enum_NVML_ERROR_TIMEOUT))?;
            let event = nvmlEventData_t {
                device: handle_of(&uuid),
                eventType: nvmlEventTypeXidCriticalError.into(),
                eventData: xid,
                gpuInstanceId: c_uint::MAX,
                computeInstanceId: c_uint::MAX,
            };
            // SAFETY: the caller's promise.
            unsafe { put(data, event) }
        })
    }
}
