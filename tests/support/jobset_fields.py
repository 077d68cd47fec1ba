"""Fields of a JobSet that our manifests may have, with their types, and which must be there.

Taken from jobset.x-k8s.io_jobsets.yaml of kubernetes-sigs/jobset 0.9.1, whose schema holds those of
Job and Pod; 0.8.2 has the same. Where a manifest grows, look there for what is missing here.
"""

JOB = "spec.replicatedJobs[].template.spec"
POD = f"{JOB}.template.spec"
CELL = f"{POD}.containers[]"
FIELDS = {
    "apiVersion": str,
    "kind": str,
    "metadata.name": str,
    "metadata.namespace": str,
    "metadata.labels.*": str,
    "metadata.annotations.*": str,
    "spec.ttlSecondsAfterFinished": int,
    "spec.failurePolicy.maxRestarts": int,
    "spec.failurePolicy.rules[].action": {
        "FailJobSet",
        "RestartJobSet",
        "RestartJobSetAndIgnoreMaxRestarts",
    },
    "spec.failurePolicy.rules[].name": str,
    "spec.failurePolicy.rules[].onJobFailureReasons[]": {  # checked by JobSet's webhook
        "BackoffLimitExceeded",
        "DeadlineExceeded",
        "FailedIndexes",
        "MaxFailedIndexesExceeded",
        "PodFailurePolicy",
    },
    "spec.replicatedJobs[].name": str,
    "spec.replicatedJobs[].replicas": int,
    f"{JOB}.backoffLimit": int,
    f"{JOB}.completionMode": {"Indexed", "NonIndexed"},
    f"{JOB}.completions": int,
    f"{JOB}.parallelism": int,
    f"{JOB}.podFailurePolicy.rules[].action": {"FailJob", "FailIndex", "Ignore", "Count"},
    f"{JOB}.podFailurePolicy.rules[].onExitCodes.containerName": str,
    f"{JOB}.podFailurePolicy.rules[].onExitCodes.operator": {"In", "NotIn"},
    f"{JOB}.podFailurePolicy.rules[].onExitCodes.values[]": int,
    f"{JOB}.podFailurePolicy.rules[].onPodConditions[].status": {"True", "False", "Unknown"},
    f"{JOB}.podFailurePolicy.rules[].onPodConditions[].type": str,
    f"{JOB}.template.metadata.labels.*": str,
    f"{POD}.dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    f"{POD}.hostNetwork": bool,
    f"{POD}.nodeSelector.*": str,
    f"{POD}.restartPolicy": {"Never"},  # with a podFailurePolicy Kubernetes takes no other
    f"{POD}.serviceAccountName": str,
    f"{POD}.terminationGracePeriodSeconds": int,
    f"{POD}.tolerations[].key": str,
    f"{POD}.tolerations[].operator": {"Equal", "Exists"},
    f"{POD}.tolerations[].value": str,
    f"{POD}.volumes[].name": str,
    f"{POD}.volumes[].persistentVolumeClaim.claimName": str,
    f"{CELL}.name": str,
    f"{CELL}.image": str,
    f"{CELL}.command[]": str,
    f"{CELL}.args[]": str,
    f"{CELL}.env[].name": str,
    f"{CELL}.env[].value": str,
    f"{CELL}.resources.limits.*": int,
    f"{CELL}.volumeMounts[].mountPath": str,
    f"{CELL}.volumeMounts[].name": str,
}
REQUIRED = {
    "": {"apiVersion", "kind", "metadata", "spec"},
    "spec.failurePolicy.rules[]": {"action", "name"},
    "spec.replicatedJobs[]": {"name", "template"},
    JOB: {"template"},
    f"{JOB}.podFailurePolicy": {"rules"},
    f"{JOB}.podFailurePolicy.rules[]": {"action"},
    f"{JOB}.podFailurePolicy.rules[].onExitCodes": {"operator", "values"},
    f"{JOB}.podFailurePolicy.rules[].onPodConditions[]": {"status", "type"},
    POD: {"containers"},
    CELL: {"name"},
    f"{CELL}.env[]": {"name"},
    f"{CELL}.volumeMounts[]": {"mountPath", "name"},
    f"{POD}.volumes[]": {"name"},
    f"{POD}.volumes[].persistentVolumeClaim": {"claimName"},
}


def faults(value, path=""):
    """What is wrong with a manifest, a line each."""
    if isinstance(value, dict):
        missing = REQUIRED.get(path, set()) - value.keys()
        found = [f"{path or 'manifest'}: lacks {', '.join(sorted(missing))}"] if missing else []
        for name, each in value.items():
            below = f"{path}.{name}".removeprefix(".")
            free = f"{path}.*"
            found += faults(each, free if free in FIELDS else below)
        return found
    if isinstance(value, list):
        return [line for each in value for line in faults(each, f"{path}[]")]
    kind = FIELDS.get(path)
    if kind is None:
        return [f"{path}: is no field"]
    fits = value in kind if isinstance(kind, set) else type(value) is kind
    return [] if fits else [f"{path}={value!r}: must be {kind}"]
