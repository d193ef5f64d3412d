"""What a release needs: locks, licences, bill of materials, and the check of what would be published."""
