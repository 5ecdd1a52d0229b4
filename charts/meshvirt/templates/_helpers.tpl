{{/* Name of everything in the release's namespace, cut so that suffixes fit into 63 characters. */}}
{{- define "meshvirt.name" -}}
{{- if contains "meshvirt" .Release.Name -}}
{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-meshvirt" (.Release.Name | trunc 41 | trimSuffix "-") }}
{{- end -}}
{{- end }}

{{- define "meshvirt.selector" -}}
app.kubernetes.io/name: meshvirt
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: webhook
{{- end }}

{{- define "meshvirt.labels" -}}
{{ include "meshvirt.selector" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Image reference of a dictionary with image (registry, repository, tag, digest) and default (tag). */}}
{{- define "meshvirt.image" -}}
{{- $i := .image -}}
{{ with $i.registry }}{{ . }}/{{ end }}{{ $i.repository }}:{{ $i.tag | default .default }}{{ with $i.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Not empty if the webhook makes its certificate itself. */}}
{{- define "meshvirt.builtIn" -}}
{{- if not (or .Values.certManager.enabled .Values.webhook.certificateSecret) -}}
true
{{- end -}}
{{- end }}

{{/* Secret with the CA of the certificate that the webhook makes itself. One name for all releases, as of
the configuration: whoever comes back finds the CA that the configuration trusts. */}}
{{- define "meshvirt.caSecret" -}}
meshvirt-webhook-ca
{{- end }}

{{/* Secret with the serving certificate, if it is mounted. */}}
{{- define "meshvirt.certificateSecret" -}}
{{- if .Values.certManager.enabled -}}
{{ include "meshvirt.name" . }}-certificate
{{- else -}}
{{ .Values.webhook.certificateSecret }}
{{- end -}}
{{- end }}

{{/* Stops values that would install a webhook nobody can call. */}}
{{- define "meshvirt.checkCertificate" -}}
{{- if .Values.certManager.enabled }}
{{- if or .Values.webhook.certificateSecret .Values.webhook.caBundle }}
{{- fail "webhook.certificateSecret and webhook.caBundle are for certManager.enabled=false: leave them empty, cert-manager makes both" }}
{{- end }}
{{- else if ne (empty .Values.webhook.certificateSecret) (empty .Values.webhook.caBundle) }}
{{- fail "for a certificate of your own set both webhook.certificateSecret (name of a TLS Secret) and webhook.caBundle (PEM text of its CA); with neither, the webhook makes one itself" }}
{{- end }}
{{- end }}
