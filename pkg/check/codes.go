package check

// Severity says how bad a finding is.
type Severity string

// The severities.
const (
	// Error: a virtual machine cannot start, or is not in the mesh as its user thinks.
	Error Severity = "error"
	// Warning: doubtful, or going to be an error.
	Warning Severity = "warning"
)

// Severities lists both, the worse one first.
var Severities = []Severity{Error, Warning}

// Code names a kind of fault. The set is closed: Codes and docs/check.md have each.
type Code string

// Faults of the installation.
const (
	CannotTell             Code = "CannotTell"
	NoKubeVirt             Code = "NoKubeVirt"
	NotInstalled           Code = "NotInstalled"
	InstalledTwice         Code = "InstalledTwice"
	BeforeMesh             Code = "BeforeMesh"
	OnlyReinvoked          Code = "OnlyReinvoked"
	NeverReinvoked         Code = "NeverReinvoked"
	CABundleMissing        Code = "CABundleMissing"
	CABundleExpired        Code = "CABundleExpired"
	CABundleExpiring       Code = "CABundleExpiring"
	ServiceMissing         Code = "ServiceMissing"
	NoEndpoints            Code = "NoEndpoints"
	FewEndpoints           Code = "FewEndpoints"
	Unanswered             Code = "Unanswered"
	NotAsked               Code = "NotAsked"
	PluginRelease          Code = "PluginRelease"
	DataPlaneRelease       Code = "DataPlaneRelease"
	DefaultModeUnavailable Code = "DefaultModeUnavailable"
)

// Faults of namespaces.
const (
	PodSecurity      Code = "PodSecurity"
	NamespaceLeftOut Code = "NamespaceLeftOut"
)

// Faults of virtual machines.
const (
	InvalidAnnotation Code = "InvalidAnnotation"
	NoEffect          Code = "NoEffect"
	ModeUnavailable   Code = "ModeUnavailable"
	Refused           Code = "Refused"
)

// Faults of pods.
const (
	NotAdapted         Code = "NotAdapted"
	LeftAlone          Code = "LeftAlone"
	NotInMesh          Code = "NotInMesh"
	OtherRelease       Code = "OtherRelease"
	UndoUnreadable     Code = "UndoUnreadable"
	NextRefused        Code = "NextRefused"
	KnownIssue         Code = "KnownIssue"
	Doubtful           Code = "Doubtful"
	ContainerFailed    Code = "ContainerFailed"
	ContainerNotReady  Code = "ContainerNotReady"
	ContainerRestarted Code = "ContainerRestarted"
)

// Codes has the severity of each code, and its meaning in one sentence; docs/check.md is made of it.
var Codes = map[Code]struct {
	Severity Severity
	Meaning  string
}{
	CannotTell:             {Warning, "Something cannot be read or tried, for want of rights or else; what needs it is not checked."},
	NoKubeVirt:             {Warning, "The API server serves no virtual machines."},
	NotInstalled:           {Error, "No MutatingWebhookConfiguration has the webhook `inject.meshvirt.io`: no pod is adapted."},
	InstalledTwice:         {Error, "Several MutatingWebhookConfigurations have the webhook: pods are adapted by one and by the other."},
	BeforeMesh:             {Error, "The API server calls MeshVirt before the mesh's injector, and not again: no pod is adapted."},
	OnlyReinvoked:          {Warning, "The API server calls MeshVirt before the mesh's injector, and again only because that changes the pod."},
	NeverReinvoked:         {Warning, "`reinvocationPolicy` is not IfNeeded: what other webhooks change in a pod later is not seen."},
	CABundleMissing:        {Error, "`caBundle` has no certificate: API servers do not trust the webhook."},
	CABundleExpired:        {Error, "No certificate in `caBundle` is valid now: API servers do not trust the webhook."},
	CABundleExpiring:       {Warning, "The last certificate in `caBundle` expires within a month, or a quarter of its life; what should have renewed it has not."},
	ServiceMissing:         {Error, "The Service that the configuration names does not exist."},
	NoEndpoints:            {Error, "No pod of the webhook is ready."},
	FewEndpoints:           {Warning, "Fewer pods of the webhook are ready than its Deployment wants."},
	Unanswered:             {Error, "The API server cannot ask the webhook, or does not trust its answer (`--try`)."},
	NotAsked:               {Error, "The API server does not ask the webhook about a pod that it should see, or goes on without its answer (`--try`)."},
	PluginRelease:          {Warning, "The webhook is of another release than this command, which judges pods by its own."},
	DataPlaneRelease:       {Warning, "The images of webhook and data plane have different tags: if they are of different releases, virtual machines do not start."},
	DefaultModeUnavailable: {Warning, "The default mode needs native sidecars, and so Kubernetes 1.29: mode auto takes its place."},

	PodSecurity:      {Error, "The namespace enforces a Pod Security level that refuses the pods of its virtual machines."},
	NamespaceLeftOut: {Error, "The mesh injects in a namespace that the webhook's `namespaceSelector` leaves out."},

	InvalidAnnotation: {Error, "An annotation has a value that will be refused: the virtual machine does not start or migrate."},
	NoEffect:          {Warning, "An annotation or label of MeshVirt's has no effect: its key is unknown, its value is none of those wanted, or it is on the VirtualMachine in place of its template."},
	ModeUnavailable:   {Error, "What is asked for needs native sidecars, and so Kubernetes 1.29: the virtual machine does not start."},
	Refused:           {Error, "KubeVirt cannot create the pod, because of MeshVirt's webhook or of its containers."},

	NotAdapted:         {Error, "The pod is in a mesh, but not adapted: it started before MeshVirt, or while the webhook did not answer."},
	LeftAlone:          {Warning, "The pod is in a mesh, and MeshVirt leaves it alone for a reason that you can change."},
	NotInMesh:          {Warning, "A mode is asked for, and no mesh has injected its proxy into the pod."},
	OtherRelease:       {Warning, "The pod was adapted by another release than the one that is installed."},
	UndoUnreadable:     {Warning, "`meshvirt.io/undo` cannot be read: somebody has changed it."},
	NextRefused:        {Error, "A pod like this one would be refused now: the virtual machine does not start again or migrate."},
	KnownIssue:         {Warning, "The pod shows a known defect or limit of the mesh's release."},
	Doubtful:           {Warning, "Admission warns of this pod."},
	ContainerFailed:    {Error, "A container of MeshVirt's does not start or has failed."},
	ContainerNotReady:  {Error, "A container of MeshVirt's runs and is not ready."},
	ContainerRestarted: {Warning, "A container of MeshVirt's ended and was started again."},
}
