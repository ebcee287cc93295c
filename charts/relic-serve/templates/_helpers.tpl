{{- define "relic.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "relic.labels" -}}
{{ include "relic.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "relic.account" -}}
{{ .Values.serviceAccount.name | default .Release.Name }}
{{- end }}

{{- /* The export: the value's, or what the roll-out has set in the cluster, which an upgrade must not undo. */ -}}
{{- define "relic.export" -}}
{{- $live := lookup "apps/v1" "Deployment" .Release.Namespace .Release.Name }}
{{- $found := .Values.export }}
{{- if not $found }}
{{- range dig "spec" "template" "spec" "containers" (list) $live }}
{{- range .env }}
{{- if eq .name "RELIC_EXPORT" }}
{{- $found = .value | default "" }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- $found }}
{{- end }}
