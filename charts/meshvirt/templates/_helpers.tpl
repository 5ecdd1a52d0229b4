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
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: webhook
{{- end }}

{{- define "meshvirt.labels" -}}
{{ include "meshvirt.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Image reference of a dictionary with image (registry, repository, tag, digest) and default (tag). */}}
{{- define "meshvirt.image" -}}
{{- $i := .image -}}
{{ with $i.registry }}{{ . }}/{{ end }}{{ $i.repository }}:{{ $i.tag | default .default }}{{ with $i.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* Secret with the serving certificate. */}}
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
{{- else if not (and .Values.webhook.certificateSecret .Values.webhook.caBundle) }}
{{- fail "the webhook needs a serving certificate: set certManager.enabled=true, or both webhook.certificateSecret (name of a TLS Secret) and webhook.caBundle (PEM text of its CA)" }}
{{- end }}
{{- end }}
