package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // whatever a user's kubeconfig logs in by
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/pager"

	"github.com/meshvirt/meshvirt/pkg/annotations"
	"github.com/meshvirt/meshvirt/pkg/check"
	"github.com/meshvirt/meshvirt/pkg/inventory"
)

// requestTimeout bounds each request unless the user says otherwise.
const requestTimeout = "30s"

// source is the cluster that kubectl's flags and kubeconfig name.
type source struct {
	config clientcmd.ClientConfig
	flags  *pflag.FlagSet // those alone
}

func (s *source) addFlags(c *cobra.Command) {
	s.flags = pflag.NewFlagSet("cluster", pflag.ContinueOnError)
	rules, overrides := clientcmd.NewDefaultClientConfigLoadingRules(), &clientcmd.ConfigOverrides{}
	s.flags.StringVar(&rules.ExplicitPath, clientcmd.RecommendedConfigPathFlag, "", "the kubeconfig file in place of $KUBECONFIG or ~/.kube/config")
	names := clientcmd.RecommendedConfigOverrideFlags("")
	names.Timeout.Default = requestTimeout
	clientcmd.BindOverrideFlags(overrides, s.flags, names)
	c.Flags().AddFlagSet(s.flags)
	s.config = clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, overrides)
	completeBy(c, clientcmd.FlagContext, func(context.Context) ([]string, error) {
		raw, err := s.config.RawConfig()
		return slices.Sorted(maps.Keys(raw.Contexts)), err
	})
	completeBy(c, clientcmd.FlagNamespace, s.namespaces)
}

// set gives the flags that the user has set.
func (s *source) set() (names []string) {
	s.flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed {
			names = append(names, "--"+f.Name)
		}
	})
	return names
}

// completeBy completes the flag by what f finds; nothing if that fails.
func completeBy(c *cobra.Command, flag string, f func(context.Context) ([]string, error)) {
	_ = c.RegisterFlagCompletionFunc(flag, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) { return completions(f) })
}

func completions(f func(context.Context) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second) // somebody waits at the keyboard
	defer cancel()
	values, err := f(ctx)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveError
	}
	return values, cobra.ShellCompDirectiveNoFileComp
}

func (s *source) client() (*rest.Config, *dynamic.DynamicClient, error) {
	config, err := s.config.ClientConfig()
	if clientcmd.IsEmptyConfig(err) {
		err = errors.New("no cluster is configured: set --kubeconfig or KUBECONFIG, or give manifests by -f")
	}
	if err != nil {
		return nil, nil, err
	}
	config.QPS = -1 // one request after the other is no flood
	config.WarningHandler = rest.NoWarnings{}
	client, err := dynamic.NewForConfig(config)
	return config, client, err
}

func (s *source) namespaces(ctx context.Context) ([]string, error) {
	return s.names(ctx, inventory.Namespaces, "", metav1.ListOptions{})
}

// names gives those of a resource's objects.
func (s *source) names(ctx context.Context, resource, namespace string, o metav1.ListOptions) (names []string, err error) {
	_, client, err := s.client()
	if err != nil {
		return nil, err
	}
	list, err := client.Resource(byName(resource).GroupVersionResource).Namespace(namespace).List(ctx, o)
	if err != nil {
		return nil, err
	}
	for _, item := range list.Items {
		names = append(names, item.GetName())
	}
	return names, nil
}

func byName(name string) inventory.Resource {
	return inventory.Resources[slices.IndexFunc(inventory.Resources, func(r inventory.Resource) bool { return r.Resource == name })]
}

// reader reads into a inventory.Cluster, and remembers there what it could not read.
type reader struct {
	*inventory.Cluster
	client dynamic.Interface
}

// connect gives a reader that has the server's version, and the namespace that is asked for. An error means that there is
// no such cluster, or that it does not know the user.
func (s *source) connect(ctx context.Context) (r reader, namespace string, err error) {
	config, client, err := s.client()
	if err != nil {
		return r, "", err
	}
	if namespace, _, err = s.config.Namespace(); err != nil {
		return r, "", err
	}
	r = reader{&inventory.Cluster{Now: time.Now(), Unknown: map[string]string{}}, client}
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return r, "", err
	}
	if r.Server, err = d.ServerVersionWithContext(ctx); err != nil && !apierrors.IsForbidden(err) {
		return r, "", fmt.Errorf("ask the API server at %s for its version: %w", config.Host, err)
	}
	return r, namespace, nil
}

// read gives the cluster, and says in words which virtual machines of it; if try is set, with what becomes of a pod in a
// dry run. It fails as connect does, and if there is no such namespace.
func (s *source) read(ctx context.Context, all, try bool) (*inventory.Cluster, string, error) {
	r, namespace, err := s.connect(ctx)
	if err != nil {
		return nil, "", err
	}
	r.installation(ctx)
	scope := "all namespaces"
	if all {
		namespace = metav1.NamespaceAll
		r.list(ctx, inventory.Namespaces, "", metav1.ListOptions{})
	} else {
		scope = "namespace " + namespace
		if err := r.get(ctx, inventory.Namespaces, "", namespace); err != nil {
			return nil, "", err
		}
	}
	r.list(ctx, inventory.Machines, namespace, metav1.ListOptions{})
	r.list(ctx, inventory.Instances, namespace, metav1.ListOptions{})
	for _, labels := range []string{launcherLabel, "kubevirt.io!=virt-launcher,meshvirt.io/inject=true"} {
		r.list(ctx, inventory.Pods, namespace, metav1.ListOptions{LabelSelector: labels})
	}
	if try {
		if all {
			namespace = check.TrialNamespace(r.Cluster)
		}
		r.try(ctx, namespace)
	}
	return r.Cluster, scope, nil
}

// try asks the API server to create a pod in a dry run.
func (r reader) try(ctx context.Context, namespace string) {
	r.Tried = &inventory.Trial{Namespace: namespace}
	if namespace == "" {
		return
	}
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(check.TrialPod(namespace))
	if err == nil {
		pods := r.client.Resource(byName(inventory.Pods).GroupVersionResource).Namespace(namespace)
		var pod *unstructured.Unstructured
		if pod, err = pods.Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err == nil {
			r.Tried.Adapted = pod.GetAnnotations()[annotations.Status] != ""
		}
	}
	r.Tried.Err = err
}

// installation reads what MeshVirt's configurations lead to.
func (r reader) installation(ctx context.Context) {
	r.webhook(ctx)
	services := r.Ours()
	if len(services) == 0 { // nobody knows where to look
		r.Unknown[inventory.EndpointSlices] = ""
	}
	for _, s := range services {
		r.list(ctx, inventory.EndpointSlices, s.Namespace, metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + s.Name})
	}
}

// webhook reads what tells how MeshVirt is configured.
func (r reader) webhook(ctx context.Context) {
	r.list(ctx, inventory.Configurations, "", metav1.ListOptions{})
	services := r.Ours()
	if len(services) == 0 {
		r.Unknown[inventory.Services], r.Unknown[inventory.Deployments] = "", ""
	}
	for _, s := range services {
		if err := r.get(ctx, inventory.Services, s.Namespace, s.Name); err != nil && !apierrors.IsNotFound(err) {
			r.Unknown[inventory.Services] = err.Error()
		}
		r.list(ctx, inventory.Deployments, s.Namespace, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=meshvirt"})
	}
}

// fetch reads one object.
func (r reader) fetch(ctx context.Context, resource, namespace, name string) error {
	u, err := r.client.Resource(byName(resource).GroupVersionResource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	return r.add(u)
}

// get is fetch, but that what may not be read is remembered, and no error.
func (r reader) get(ctx context.Context, resource, namespace, name string) error {
	err := r.fetch(ctx, resource, namespace, name)
	if apierrors.IsForbidden(err) {
		r.Unknown[resource] = err.Error()
		return nil
	}
	return err
}

// fetchAll reads all, in pages.
func (r reader) fetchAll(ctx context.Context, resource, namespace string, o metav1.ListOptions) error {
	client := r.client.Resource(byName(resource).GroupVersionResource).Namespace(namespace)
	pages := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return client.List(ctx, o) })
	return pages.EachListItem(ctx, o, r.add)
}

// list is fetchAll, but that every error is remembered.
func (r reader) list(ctx context.Context, resource, namespace string, o metav1.ListOptions) {
	switch err := r.fetchAll(ctx, resource, namespace, o); {
	case err == nil:
	case notServed(err) && (resource == inventory.Machines || resource == inventory.Instances):
		r.NoKubeVirt, r.Unknown[resource] = true, ""
	default:
		r.Unknown[resource] = err.Error()
	}
}

// notServed reports whether the API server does not know the resource: what it says of a path that nobody serves is no
// Status.
func notServed(err error) bool {
	return apierrors.IsNotFound(err) && apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
}

func (r reader) add(object runtime.Object) error {
	b, err := object.(*unstructured.Unstructured).MarshalJSON()
	if err != nil {
		return err
	}
	return r.Add(b)
}
