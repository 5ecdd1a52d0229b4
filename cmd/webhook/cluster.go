package main

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client/config"

	"github.com/meshvirt/meshvirt/pkg/admit"
)

// watchCluster starts to watch what -cluster is for; nothing waits for it. Nil if the flag is off.
func watchCluster(ctx context.Context, o *options, log *slog.Logger, registry prometheus.Registerer) (*admit.Cluster, error) {
	if !o.cluster {
		return nil, nil
	}
	rest, err := config.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("-cluster is set, so the webhook needs the API server: %w", err)
	}
	c, err := admit.NewCluster(rest, log, registry)
	if err != nil {
		return nil, fmt.Errorf("-cluster: %w", err)
	}
	c.Start(ctx)
	return c, nil
}
